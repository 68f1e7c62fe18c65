"""What `pip install` does beside copying: compiles the walk over web pages, where there is a C compiler."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILE = "data_pipeline/build/read/compile_walk.py"


class CompiledWalk(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        script = runpy.run_path(str(Path(self.root) / COMPILE))
        if hindered := script["compile_walk"]():
            self.app.display_warning(f"_walk.c is not compiled; its Python form is used. {hindered}")
            return
        build_data["artifacts"].append(str(script["COMPILED"].relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
