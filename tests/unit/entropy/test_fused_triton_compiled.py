"""What the compiler makes of the Triton kernel, for devices that need not be there: PTX, registers, spills."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
    pytest.mark.parametrize("optional", [False, True], ids=["plain", "bias and soft cap"]),
    pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"]),
    pytest.mark.parametrize("capability", [80, 90, 100]),
]

THREADS = 128  # of a program: four warps, Triton's default, with which the kernel is launched
SCALARS = ("stride", "start", "width")
# Six programs of a multiprocessor's 65,536 registers: 24 warps that wait for their loads at the same time.
MOST_REGISTERS = 80


@cache
def ptx(capability: int, dtype: str, optional: bool) -> str:
    """As a launch over a vocabulary in multiples of 16 compiles it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from entropy_rft.entropy.fused_triton import _BLOCK, _fold

    def kind(name: str) -> str:
        if name.isupper():
            return "constexpr"
        if name.endswith("_ptr"):
            own = {"tile_ptr": f"*{dtype}", "bias_ptr": f"*{dtype}", "targets_ptr": "*i64"}
            return own.get(name, "*fp32")
        return "i32" if name in SCALARS else "fp32"

    # What Triton finds out at a launch: pointers from torch are aligned, tiles and their rows are multiples of 16.
    aligned = [i for i, name in enumerate(_fold.arg_names) if name.endswith("_ptr") or name in SCALARS]
    source = ASTSource(
        _fold,
        {name: kind(name) for name in _fold.arg_names},
        {"HAS_BIAS": optional, "HAS_SOFTCAP": optional, "BLOCK": _BLOCK},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]


def instructions(text: str, name: str) -> list[str]:
    """The suffixes of all instructions of that name, such as ``.v4.b32``."""
    return re.findall(rf"\b{re.escape(name)}(\.\S+)", text)


def test_every_logit_is_read_once_in_16_bytes_and_none_is_written(capability: int, dtype: str, optional: bool) -> None:
    from entropy_rft.entropy.fused_triton import _BLOCK

    text = ptx(capability, dtype, optional)
    assert f".target sm_{capability}" in text
    assert f".reqntid {THREADS}" in text
    loads = instructions(text, "ld.global")
    wide = [load for load in loads if ".v4." in load]
    # A thread's part of a block of logits, and of the bias where there is one.
    of_a_thread = _BLOCK // THREADS * (4 if dtype == "fp32" else 2)
    assert len(wide) == of_a_thread // 16 * (2 if optional else 1)
    assert all(load.endswith(".v4.b32") for load in wide)
    # Five sums, the target, its logit, and its bias.
    assert len(loads) - len(wide) == 5 + 2 + optional
    # The five sums and the target's logit, 4 bytes each.
    stores = instructions(text, "st.global")
    assert len(stores) == 6
    assert all(store.endswith(".b32") and ".v" not in store for store in stores)
    assert not re.search(r"\b(?:ld|st)\.local|\batom|\bred\.global", text)


def test_registers_are_few_and_nothing_spills(capability: int, dtype: str, optional: bool, tmp_path: Path) -> None:
    from triton.backends import nvidia

    tools = Path(next(iter(nvidia.__path__))) / "bin"
    assembler = tools / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    if not assembler.is_file():
        assembler = tools / "ptxas"
    if not assembler.is_file():
        pytest.skip("this build of triton came without ptxas")
    text = ptx(capability, dtype, optional)
    source = tmp_path / "fold.ptx"
    source.write_text(text)
    target = re.findall(r"\.target (\w+)", text)[0]
    command = [str(assembler), "-v", f"--gpu-name={target}", str(source), "-o", str(tmp_path / "fold.cubin")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert re.search(r"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", said), said
    registers = re.search(r"Used (\d+) registers", said)
    assert registers, said
    assert int(registers[1]) <= MOST_REGISTERS, said
