"""A type for what diffusers leaves without one."""

from typing import Any, TypeAlias

Untyped: TypeAlias = Any
"""A module, config, pipeline or scheduler of diffusers, whose attributes and submodules have no types."""
