"""The bundle's folder, from a package in which everything is decided."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import (
    SCHEMA,
    BaseIdentity,
    GgufFile,
    Manifest,
    PromptRecord,
    read_bundle,
    write_bundle,
)
from packager.errors import CorruptFileError, OutputExistsError
from packager.files import (
    partial_path,
    publish,
    read_json,
    require_disk,
    sha256_file,
    write_json,
)
from packager.gguf.types import TypedQuant
from packager.gguf.write import WrittenGguf, write_ggufs
from packager.merge.merged import MergedCheckpoint
from packager.pipeline.inputs import Inputs
from packager.pipeline.nearness import Nearness, measure_nearness, quant_types
from packager.pipeline.prepare import Package, tool_versions
from packager.pipeline.prompting import record_template
from packager.progress import Progress, Silent
from packager.prompt.modelfile import render_modelfile

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
    missing = [item for item in package.chosen if _file_name(package, item) not in kept]
    needed = sum(item.size_bytes + _METADATA_BYTES for item in missing)
    require_disk(folder, needed, "The bundle")
    nearness = measure_nearness(
        package.inputs,
        package.checkpoint,
        quant_types(package.conversion, package.chosen),
        package.plan.device,
        progress,
    )
    if missing:
        with _cleaned_up_on_error(folder, [_file_name(package, item) for item in missing]):
            write_json(folder / _MARKER, {"fingerprint": package.fingerprint})
            for written in _write(package, missing, progress):
                kept[written.path.name] = _describe(written)
    manifest = _manifest(package, tuple(kept.values()))
    asked_for = tuple(kept[_file_name(package, item)] for item in package.chosen)
    first = asked_for[0].name
    write_bundle(folder, manifest, render_modelfile(package.modelfile, first))
    (folder / _MARKER).unlink(missing_ok=True)
    made = {_file_name(package, item) for item in missing}
    reused = tuple(file.name for file in asked_for if file.name not in made)
    return Bundle(folder, manifest, asked_for, reused, nearness)


@contextmanager
def _cleaned_up_on_error(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Make the folder; after an error, leave nothing unfinished in it, nor an empty folder."""
    was_there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for name in names:
            partial_path(folder / name).unlink(missing_ok=True)
        (folder / _MARKER).unlink(missing_ok=True)
        if not was_there and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _file_name(package: Package, typed: TypedQuant) -> str:
    return next(q.file_name for q in package.plan.quants if q.quant == typed.quant.name)


def _write(
    package: Package, missing: Sequence[TypedQuant], progress: Progress
) -> list[WrittenGguf]:
    folder = package.plan.out
    targets = [(folder / _file_name(package, item), item) for item in missing]
    threads = package.request.threads or os.cpu_count() or 1
    written = write_ggufs(package.conversion, targets, threads, progress)
    checkpoint = package.checkpoint
    if isinstance(checkpoint, MergedCheckpoint):
        checkpoint.require_all_used()
        if checkpoint.is_untrained:
            progress.warn("The adapter changes nothing (it is untrained): the model is its base")
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
        for file in manifest.ggufs:
            path = folder / file.name
            if path.is_file() and sha256_file(path) == file.sha256:
                kept[file.name] = file
            else:
                progress.warn(f"{path} is not what the manifest says; it is made again")
        if kept:
            progress.note(f"Found whole and verified in {folder}: {', '.join(kept)}")
        return kept
    if not package.request.force and not _is_ours(package, folder):
        names = [_file_name(package, item) for item in package.chosen]
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


def _manifest(package: Package, ggufs: tuple[GgufFile, ...]) -> Manifest:
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


def base_identity(inputs: Inputs) -> BaseIdentity:
    """Who the base is, or the full model where there is no adapter."""
    model = inputs.model
    model_id = inputs.base.model_id if inputs.base else inputs.source.model_id
    revision = inputs.base.revision if inputs.base else inputs.source.revision
    return BaseIdentity(
        id=model_id or model.folder.absolute().name,
        revision=revision,
        config_sha256=sha256_file(model.folder / "config.json"),
        index_sha256=model.index_sha256(),
    )
