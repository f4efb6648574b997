"""Scene tasks: follow a camera trajectory or find an object in a recorded scene.

`tasks` defines a task with its recording and right answer, `rows` converts tasks to dataset rows, `recordings` and
`recording_formats` read videos with known cameras, and `curation` cuts tasks out of them. Names are resolved on first
use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tasks": ["SceneTask"],
        "rows": ["complete_rows", "load_scene_rows", "scene_dataset", "task_row"],
        "recordings": ["PosedVideo"],
        "recording_formats": ["load_posed_video"],
        "curation": ["Curation", "grounding_tasks", "navigation_task"],
    },
)
