"""Configs: gin's text, bound to trees of frozen dataclasses."""

from __future__ import annotations

from configs.schema import PathInfo, paths, setting

__all__ = ["PathInfo", "paths", "setting"]
