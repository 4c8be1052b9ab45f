"""The binding against the headers: structures, constants, functions and their argument types."""

from __future__ import annotations

import ctypes as C
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pagedkv import _library, _structs
from pagedkv._structs import CONSTANTS, STRUCTS

INCLUDE = Path(__file__).resolve().parents[3] / "include"
HEADERS = sorted((INCLUDE / "pagedkv").glob("*.h"))


def _declarations() -> dict[str, list[str]]:
    """Parameter lists of every public function in the headers."""
    found = {}
    for header in HEADERS:
        code = re.sub(r"/\*.*?\*/", " ", header.read_text(), flags=re.S)
        for name, parameters in re.findall(
            r"PKV_API\b[^;()]*?\b(pkv_\w+)\s*\(([^;]*?)\)\s*;", code
        ):
            parts = [" ".join(part.split()) for part in parameters.split(",")]
            found[name] = [] if parts == ["void"] else parts
    return found


def _kind(parameter: str) -> str:
    """Machine class of a C parameter: pointer, u32, struct:pkv_seq …"""
    if "*" in parameter or "[" in parameter:
        return "pointer"
    words = [word for word in parameter.split() if word != "const"]
    known = {
        "uint32_t": "u32",
        "uint64_t": "u64",
        "int32_t": "i32",
        "int64_t": "i64",
        "size_t": "u64",
        "float": "f32",
        "double": "f64",
        "pkv_page": "u64",
        "pkv_status": "i32",
        "pkv_dtype": "i32",
        "pkv_layout": "i32",
        "pkv_storage": "i32",
        "pkv_evict_kind": "i32",
        "int": "i32",
        "pkv_pin": "u64",
        "pkv_move_fn": "pointer",
    }
    return known.get(words[0], f"struct:{words[0]}")


def _ctype_kind(ctype: object) -> str:
    if ctype in (C.c_void_p, C.c_char_p) or hasattr(ctype, "contents"):
        return "pointer"
    if isinstance(ctype, type) and issubclass(ctype, _structs.Struct):
        return f"struct:{ctype.c_name}"
    return {
        C.c_uint32: "u32",
        C.c_uint64: "u64",
        C.c_int32: "i32",
        C.c_int64: "i64",
        C.c_size_t: "u64",
        C.c_float: "f32",
        C.c_double: "f64",
    }[ctype]


def test_every_public_function_is_declared():
    declared = _declarations()
    assert len(declared) > 50
    assert set(_library.SIGNATURES) == set(declared)


def test_argument_types_match_the_headers():
    for name, parameters in _declarations().items():
        _, arguments = _library.SIGNATURES[name]
        assert [_ctype_kind(a) for a in arguments] == [_kind(p) for p in parameters], name


def test_the_library_exports_every_function():
    missing = [name for name in _library.SIGNATURES if not hasattr(_library.lib, name)]
    assert missing == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_structures_and_constants_match_the_compiler(tmp_path: Path):
    lines = [
        "#include <pagedkv/pagedkv.h>",
        "#include <pagedkv/index.h>",
        "#include <stdio.h>",
        "int main(void) {",
    ]
    expected = {}
    for struct in STRUCTS:
        lines.append(f'printf("{struct.c_name} %zu\\n", sizeof({struct.c_name}));')
        expected[struct.c_name] = C.sizeof(struct)
        for field, *_ in struct._fields_:
            key = f"{struct.c_name}.{field}"
            member = f"(({struct.c_name} *)0)->{field}"
            lines.append(f'printf("{key} %zu\\n", offsetof({struct.c_name}, {field}));')
            lines.append(f'printf("{key}:size %zu\\n", sizeof({member}));')
            expected[key] = getattr(struct, field).offset
            expected[key + ":size"] = getattr(struct, field).size
    for name, value in CONSTANTS.items():
        lines.append(f'printf("PKV_{name} %lld\\n", (long long)PKV_{name});')
        expected[f"PKV_{name}"] = value
    lines.append("return 0; }")
    source, program = tmp_path / "abi.c", tmp_path / "abi"
    source.write_text("\n".join(lines))
    subprocess.run(
        ["cc", "-std=c11", "-I", str(INCLUDE), "-o", str(program), str(source)], check=True
    )
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    actual = {key: int(value) for key, value in (line.split() for line in output.splitlines())}
    assert actual == expected


def test_every_public_structure_is_known():
    """pkv_allocator is C's alone: Python hands out no memory."""
    names = set()
    for header in HEADERS:
        code = re.sub(r"/\*.*?\*/", " ", header.read_text(), flags=re.S)
        names |= set(re.findall(r"\}\s*(pkv_\w+)\s*;", code))
    assert names - {"pkv_allocator"} == {struct.c_name for struct in STRUCTS}


def test_every_public_enumerator_is_known():
    """A new constant in the headers must be added to the binding (limits and versions aside)."""
    names = set()
    for header in HEADERS:
        code = re.sub(r"/\*.*?\*/", " ", header.read_text(), flags=re.S)
        for body in re.findall(r"enum\s*\w*\s*\{(.*?)\}", code, flags=re.S):
            names |= set(re.findall(r"\bPKV_(\w+)\s*=", body))
    assert {n for n in names if not n.startswith("LOG_")} <= set(CONSTANTS)
