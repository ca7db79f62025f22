"""YAML that people write, read so that a key that stands twice is an error: PyYAML silently takes the last one."""

from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"


class _OnceLoader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses a mapping in which a key stands twice, before any merge with another."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if key.value in seen:
                problem = f"{key.value} is there twice; expected each key once"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


def load_yaml(text: str | bytes) -> Any:
    """Returns what a YAML text holds.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands twice in one mapping.
    """
    try:
        return yaml.load(text, Loader=_OnceLoader)
    except (ValueError, RecursionError) as err:  # a date that is none, lists in lists without end
        raise yaml.YAMLError(str(err)) from err
