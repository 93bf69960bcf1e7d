"""``data=scenes``: captioned pictures drawn by the project itself, right by construction."""

from showtell.data.scenes.files import scenes, write_scenes

__all__ = ["scenes", "write_scenes"]
