"""What a packed row may hold at most."""

from dataclasses import dataclass

from data_pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Tokens are the row's length. Images (tiles) and patches bound the vision tower's memory: a row of
    nothing but pictures costs many times what a row of text does. None: no bound of its own."""

    tokens: int
    images: int | None = None
    patches: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"a row's budget of {name} is {value}, it must be at least 1")
