"""`params/<profile>.yaml` as one frozen, validated object; an unknown key is an error.

A profile that begins with `base: <name>` states only what differs from that one, key by key; lists, and the numbers of
videos of a scene, are replaced whole.
"""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from faster_lib.paths import PARAMS
from faster_lib.profile_sections import Profile, Section

# The keys that name another profile, and what must agree with it for its networks, or those and units, to serve here.
_NETWORKS = tuple(("networks", key) for key in ("expensive", "cheap", "width"))
_LINKS = {
    ("networks", "trained_in"): (*_NETWORKS, ("data", "num_classes")),
    ("backbone_training", "grown_from"): (*_NETWORKS, ("data", "num_classes")),
    ("networks", "pretrained_in"): (*_NETWORKS, ("networks", "reduction"), ("data", "video_frames")),
}


class ProfileError(ValueError):
    """A profile that is missing or wrong; the message lists every fault with its value and what would be right."""


class _OnceLoader(yaml.SafeLoader):
    """YAML whose mappings hold each key once; PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for key in (key for key, _ in node.value if keys.count(key.value) > 1):
            raise yaml.constructor.ConstructorError(problem=f"{key.value!r} is twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def load_profile(name: str | Path, *, folder: Path = PARAMS) -> Profile:
    """Read and check a file such as mine/own.yaml, or `<folder>/<name>.yaml`, whose networks fit those it starts from.

    Raises: ProfileError if there is no such profile, or for any missing, unknown or mistyped key.
    """
    files = {path.stem: (path, f"params/{path.name}") for path in folder.glob("*.yaml")}
    if (path := Path(name).expanduser()).suffix == ".yaml":
        name, files[path.stem] = path.stem, (path, str(path))
    return _load(name, files)


def _load(name: str, files: dict[str, tuple], where: str = "", above: tuple[str, ...] = ()) -> Profile:
    """Read a profile, which is wanted as `where` says by those above, and see that those it builds on agree with it."""
    if name in above:
        raise ProfileError(f"{where}, which leads back to {name!r}; it must come before")
    content, origins = _read_over_base(name, files, where)
    profile = parse_profile({"name": name, **content}, source=files[name][1], origins=origins)
    values = profile.model_dump()
    for link, keys in _LINKS.items():
        if (other := values[link[0]][link[1]]) is not None:
            where = f"{origins.get(link)}: {'.'.join(link)} is {other!r}"
            first = _load(other, files, where, (*above, name)).model_dump()
            for section, key in keys:
                if (own := values[section][key]) != (theirs := first[section][key]):
                    fault = f"whose {section}.{key} is {theirs!r}; here it is {own!r} and must agree"
                    raise ProfileError(f"{where}, {fault}")
    return profile


def _read_over_base(name: str, files: dict[str, tuple], where: str, above: tuple = ()) -> tuple[dict, dict[tuple, str]]:
    """Read a profile, which is wanted as `where` says, over its base: -> sections, file of each (section[, key])."""
    path, source = files.get(name, (None, f"params/{name}.yaml"))
    if name in above:
        raise ProfileError(f"{where}, which leads back to {name!r}")
    if path is None or not path.is_file():
        choice = f"choose one of {', '.join(sorted(files))}, or write {source}"
        raise ProfileError(f"{where and f'{where}: '}unknown profile {name!r}; {choice}")
    try:
        own = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except yaml.YAMLError as error:
        raise ProfileError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(own, dict):
        raise ProfileError(f"{source} holds {own!r}; it must hold sections such as data and networks")
    content, origins, base = {}, {}, own.pop("base", None)
    if base is not None:
        content, origins = _read_over_base(base, files, f"{source}: base is {base!r}", (*above, name))
    for section, stated in own.items():
        if isinstance(stated, dict):
            origins |= {(section, key): source for key in stated}
            stated = {**below, **stated} if isinstance(below := content.get(section), dict) else stated
        content[section], origins[section,] = stated, source
    return content, origins


def parse_profile(content: dict[str, Any], *, source: str, origins: dict[tuple, str] | None = None) -> Profile:
    """Check a profile held as nested dicts; `origins` says in which file a (section[, key]) stands, if not in `source`.

    Raises: ProfileError naming `source`, all faults, and the file of each that stands in another.
    """
    try:
        return Profile.model_validate_json(json.dumps(content))  # as JSON: a list may become a tuple, and no more
    except ValidationError as error:
        lines = [f"{source} has {error.error_count()} fault(s):"]
        for fault in error.errors():
            file = (origins or {}).get(fault["loc"][:2], source)
            lines.append(f"  {_describe(fault)}" + (f" (in {file})" if file != source else ""))
        raise ProfileError("\n".join(lines)) from None


def _describe(fault: dict[str, Any]) -> str:
    where, value = ".".join(map(str, fault["loc"])) or "profile", fault["input"]
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key (its value is {value!r}){hint}"
    if fault["type"] == "missing":
        return f"{where}: this key is missing"
    hint = "; YAML reads 1e-3 as text, write 1.0e-3" if fault["type"] == "float_type" else ""
    quoted = "" if isinstance(value, dict) else f" (it is {value!r}{hint})"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{quoted}"


def _known_keys(section: type[Section] = Section) -> set[str]:
    return set(section.model_fields).union(*(_known_keys(inner) for inner in section.__subclasses__()))
