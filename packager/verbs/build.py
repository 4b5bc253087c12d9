"""The bundle's folder, from a package in which everything is decided."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.bundle import read_bundle, write_bundle
from packager.bundle.manifest import SCHEMA, GgufFile, Manifest, PromptRecord
from packager.errors import CorruptFileError, OutputExistsError
from packager.files import (
    made_folder,
    partial_path,
    publish,
    read_json,
    require_disk,
    sha256_file,
    write_json,
)
from packager.gguf.convert import Conversion
from packager.gguf.types import TypedQuant
from packager.gguf.write import WrittenGguf, write_ggufs
from packager.package.checks import require_merged
from packager.package.fingerprint import base_identity, tool_versions
from packager.package.prepare import Package
from packager.package.prompt_choice import record_template
from packager.progress import Progress, Silent
from packager.prompt.modelfile_spec import render_modelfile
from packager.quality.base_choice import Nearness, measure_nearness, quant_types

_MANIFEST = "manifest.json"
# Says, while a bundle is being made, whose files these are; the manifest says it afterwards.
_MARKER = ".ftpack-build.json"
_METADATA_BYTES = 64 << 20


@dataclass(frozen=True)
class Bundle:
    """A finished bundle.

    Attributes:
        folder: where it is.
        manifest: what it holds; earlier quants of the same model included.
        asked_for: the files that this run was asked for, in that order.
        reused: the names of those that were there already, whole.
        nearness: of a base that bitsandbytes has quantized, or its twin, to what was trained.
    """

    folder: Path
    manifest: Manifest
    asked_for: tuple[GgufFile, ...]
    reused: tuple[str, ...]
    nearness: Nearness | None = None


def build(package: Package, progress: Progress | None = None) -> Bundle:
    """Make the bundle of a package, or what is missing of it.

    A rerun after a kill ends in the same bytes: files have a `.partial` name until they are whole,
    and what the manifest lists is verified by digest before it is kept.

    Raises:
        OutputExistsError: if the folder holds files of another model.
        DiskSpaceError: if there is no room for the files.
        NonFiniteError: if a weight is NaN or Inf.
        AdapterMismatchError: if something of the adapter was left out.
    """
    progress = progress or Silent()
    folder = package.plan.out
    kept = _kept_files(package, folder, progress)
    files = _files(package)
    missing = {name: item for name, item in files.items() if name not in kept}
    needed = sum(typed.size_bytes + _METADATA_BYTES for _, typed in missing.values())
    require_disk(folder, needed, "The bundle")
    nearness = measure_nearness(
        package.inputs,
        package.checkpoint,
        quant_types(package.conversion, package.chosen),
        package.plan.device,
        progress,
    )
    if missing:
        with _cleaned_up_on_error(folder, missing):
            write_json(folder / _MARKER, {"fingerprint": package.fingerprint})
            for written in _write(package, missing, progress):
                kept[written.path.name] = _describe(written)
    beside = package.plan.projector
    projector = kept.pop(beside.file_name) if beside else None
    manifest = _manifest(package, tuple(kept.values()), projector)
    asked_for = tuple(kept[name] for name in files if name in kept)
    beside_names = [projector.name] if projector else []
    modelfile = render_modelfile(package.modelfile, asked_for[0].name, *beside_names)
    write_bundle(folder, manifest, modelfile)
    (folder / _MARKER).unlink(missing_ok=True)
    reused = tuple(name for name in files if name not in missing)
    return Bundle(folder, manifest, asked_for, reused, nearness)


@contextmanager
def _cleaned_up_on_error(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Make the folder; after an error, leave nothing unfinished in it, nor an empty folder."""
    with made_folder(folder):
        try:
            yield
        except BaseException:
            for name in names:
                partial_path(folder / name).unlink(missing_ok=True)
            (folder / _MARKER).unlink(missing_ok=True)
            raise


def _files(package: Package) -> dict[str, tuple[Conversion, TypedQuant]]:
    """What was asked for, by file name: what each GGUF holds, and as which types."""
    names = {quant.quant: quant.file_name for quant in package.plan.quants}
    files = {names[typed.quant.name]: (package.conversion, typed) for typed in package.chosen}
    if package.projector and package.plan.projector:
        name = package.plan.projector.file_name
        files[name] = (package.projector.conversion, package.projector.typed)
    return files


def _write(
    package: Package, missing: Mapping[str, tuple[Conversion, TypedQuant]], progress: Progress
) -> list[WrittenGguf]:
    threads = package.request.threads or os.cpu_count() or 1
    targets: dict[Conversion, list[tuple[Path, TypedQuant]]] = {}
    for name, (conversion, typed) in missing.items():
        targets.setdefault(conversion, []).append((package.plan.out / name, typed))
    written = []
    for conversion, paths in targets.items():
        written += write_ggufs(conversion, paths, threads, progress)
    read = frozenset().union(*(found.reads for found in targets))
    require_merged(package.checkpoint, progress, read)
    for item in written:
        publish(item.path)
    return written


def _describe(written: WrittenGguf) -> GgufFile:
    typed = written.typed
    return GgufFile(
        name=written.path.name,
        quant=typed.quant.name,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        bits_per_weight=round(typed.bits_per_weight, 3),
        fallbacks=typed.fallbacks,
    )


def _kept_files(package: Package, folder: Path, progress: Progress) -> dict[str, GgufFile]:
    """What an earlier run has finished of this very model, verified; else the folder must be free.

    Raises:
        OutputExistsError: if files would be overwritten that are not this model's.
    """
    manifest = _read_manifest(folder)
    if manifest is not None and manifest.fingerprint == package.fingerprint:
        kept = {}
        for file in manifest.files:
            path = folder / file.name
            if path.is_file() and sha256_file(path) == file.sha256:
                kept[file.name] = file
            else:
                progress.warn(f"{path} is not what the manifest says; it is made again")
        if kept:
            progress.note(f"Found whole and verified in {folder}: {', '.join(kept)}")
        return kept
    if not package.request.force and not _is_ours(package, folder):
        names = _files(package)
        in_the_way = [n for n in (*names, _MANIFEST, "Modelfile") if (folder / n).exists()]
        if in_the_way:
            raise OutputExistsError(
                f"{folder} holds {', '.join(in_the_way)} of another model or another "
                "configuration.",
                next_step="Choose another folder with --out, or overwrite them with --force.",
            )
    return {}


def _read_manifest(folder: Path) -> Manifest | None:
    if not (folder / _MANIFEST).is_file():
        return None
    try:
        return read_bundle(folder)
    except CorruptFileError:
        return None


def _is_ours(package: Package, folder: Path) -> bool:
    """Whether a run of this very package was interrupted here."""
    marker = folder / _MARKER
    if not marker.is_file():
        return False
    try:
        return read_json(marker).get("fingerprint") == package.fingerprint
    except CorruptFileError:
        return False


def _manifest(
    package: Package, ggufs: tuple[GgufFile, ...], projector: GgufFile | None
) -> Manifest:
    decision, spec = package.decision, package.modelfile
    return Manifest(
        schema=SCHEMA,
        name=package.name,
        fingerprint=package.fingerprint,
        base=base_identity(package.inputs),
        adapters=package.adapters,
        combination=str(package.inputs.combination) if package.inputs.combination else None,
        tools=tool_versions(package.inputs),
        ggufs=ggufs,
        projector=projector,
        prompt=PromptRecord(
            renderer=decision.renderer,
            family=decision.family,
            reason=decision.reason,
            template_origin=package.chat_template.origin,
            template=spec.template,
            system=spec.system,
            stops=spec.stops,
            parameters=dict(spec.parameters),
            pins=dict(decision.pins),
            trained=record_template(package.chat_template),
        ),
    )
