"""`penjing pack` and `unpack`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from penjing import artifact
from penjing.artifact import Packing
from penjing.cli.main import print_json
from penjing.errors import RunError
from penjing.training.progress import Live
from penjing.units import show_bytes, show_count


def show_pack(source: Path, target: Path, packing: Packing, force: bool, as_json: bool, console: Console) -> None:
    """Write the artifact; say what it takes, and what was lost."""
    _check_target("pack", source, target, force)
    with _bar("packing", source.stat().st_size if source.is_file() else 0) as progress:
        done = artifact.pack(source, target, packing, progress=progress)
    if as_json:
        print_json({"path": str(target), **asdict(done)})
        return
    console.print(
        f"{target}: {done.size_bytes:,} bytes = {show_bytes(done.size_bytes)} for {done.n_tensors:,} tensors of "
        f"{show_count(done.n_numbers)} numbers, {8 * done.size_bytes / max(done.n_numbers, 1):.2f} bits each; "
        f"{done.source_bytes / done.size_bytes:.2f} times smaller than {source.name}",
        highlight=False,
        soft_wrap=True,
    )
    if done.rounded:
        worst = max(done.rounded, key=lambda name: done.rounded[name])
        console.print(
            f"{len(done.rounded)} tensors were rounded; the relative error is at most {100 * done.rounded[worst]:.3g} % "
            f"({escape(worst)}). The others are exact.",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print("Every tensor comes back bit for bit.", highlight=False)
    for name, reason in done.kept.items():
        console.print(f"{name} stays exact: {reason}", highlight=False, soft_wrap=True, markup=False)


def show_unpack(source: Path, target: Path, sha256: str | None, force: bool, as_json: bool, console: Console) -> None:
    """Write the safetensors file; say what it takes."""
    _check_target("unpack", source, target, force)
    with artifact.open_artifact(source, sha256=sha256) as opened:
        total = artifact.unpacked_bytes(opened)
    with _bar("unpacking", total) as progress:
        size = artifact.unpack(source, target, sha256=sha256, progress=progress)
    if as_json:
        print_json({"path": str(target), "size_bytes": size})
        return
    console.print(f"{target}: {size:,} bytes = {show_bytes(size)}", highlight=False, soft_wrap=True)


def _check_target(command: str, source: Path, target: Path, force: bool) -> None:
    if target.exists() and source.exists() and target.samefile(source):
        raise RunError(f"{command}: {target} is what is read; give another name to write.")
    if target.exists() and not force:
        raise RunError(f"{command}: {target} exists. Choose another name, or replace it with --force.")


@contextmanager
def _bar(title: str, n_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts megabytes and is told bytes."""
    done = 0
    with Live().bar(f"{title}, MB", -(-n_bytes // 10**6)) as bar:

        def progress(step: int) -> None:
            nonlocal done
            bar.advance((done + step) // 10**6 - done // 10**6)
            done += step

        yield progress
