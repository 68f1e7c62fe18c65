"""What a recipe says about fetching. The defaults are polite; lawful behaviour is not a matter of taste."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TOKEN = "fovea"  # the product token that robots.txt and X-Robots-Tag may address

# How fast, how patiently and to where: two builds that differ in these alone want the same images.
NOT_COMPARED = frozenset(
    {
        "cache",
        "connections",
        "per_host_connections",
        "per_host_rate",
        "crawl_delay_s",
        "timeout_s",
        "idle_s",
        "retries",
        "backoff_s",
        "retry_after_s",
        "remember_failures_s",
        "seed",
    }
)


class FetchConfig(BaseModel):
    """Images named by address. `timeout_s` counts from the moment that the host's rate lets a request go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_agent: str = Field(
        f"{TOKEN}/0.1",
        pattern=rf"^{TOKEN}(/[\w.]+)?( [\x20-\x7e]+)?$",
        description="sent with every request; add a contact: 'fovea/0.1 (+https://lab.example/bot)'",
    )
    honour_robots: bool = Field(True, description="robots.txt, X-Robots-Tag and TDM-Reservation")
    allow_ports: tuple[int, ...] = Field((80, 443), description="an address with another port is refused")
    connections: int = Field(64, ge=1, le=4096, description="requests at one time, in each process")
    per_host_connections: int = Field(2, ge=1, description="... to one host, in each process")
    per_host_rate: float = Field(
        2.0, gt=0, description="requests a second to one host, over all processes that share the cache"
    )
    crawl_delay_s: float = Field(30.0, ge=0, description="a longer Crawl-delay of robots.txt counts as this")
    timeout_s: float = Field(60.0, gt=0, description="hard deadline of an image, with redirects and retries")
    idle_s: float = Field(15.0, gt=0, description="an attempt ends when no byte came for so long")
    max_bytes: int = Field(32 * 2**20, ge=1, description="of a body, as sent and as decoded")
    max_redirects: int = Field(5, ge=0)
    retries: int = Field(
        3, ge=0, description="after the first attempt: timeouts, broken connections, 429, 5xx"
    )
    backoff_s: float = Field(1.0, ge=0, description="before the first retry; doubles with each, with jitter")
    retry_after_s: float = Field(
        120.0, ge=0, description="a host that asks for a longer wait is not waited for"
    )
    remember_failures_s: float = Field(
        3600.0, ge=0, description="a failure that may pass (timeout, 5xx) is not tried again for so long"
    )
    cache: str = Field("fetched", min_length=1, description="folder; relative paths count from the recipe")
    missing: Literal["drop_image", "drop_document", "keep_reference"] = Field(
        "drop_image",
        description="what to do without an image; captions and dialogues are dropped in the first case too",
    )
    max_document_bytes: int = Field(256 * 2**20, ge=1, description="images of one document beyond it are cut")
    seed: int = Field(0, description="of the jitter")
