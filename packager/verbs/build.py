"""Build: from a package to a bundle, in which only the missing files are made."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.bundle import MODELFILE, Bundle, read_bundle, write_bundle
from packager.bundle.manifest import MANIFEST, SCHEMA, GgufFile, Manifest, PromptRecord
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
from packager.gguf.write import WrittenGguf, write_ggufs
from packager.merge.checks import require_applied
from packager.override import refuse_unless
from packager.package.package import Package, PlannedGguf
from packager.package.provenance import base_identity, fingerprint, tool_versions
from packager.progress import Progress, Silent
from packager.prompt.modelfile_text import render_modelfile
from packager.prompt.template_record import record_template
from packager.quality.base_choice import BaseChoice, measure_base_choice, quant_types

# While a bundle is being made, this file identifies the package; afterwards the manifest does.
_MARKER = ".ftpack-build.json"
_METADATA_BYTES = 64 << 20


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        bundle: the bundle; its `ggufs` are the quants of this request.
        reused: the names of the files that an earlier run had finished.
        base_choice: how close the merge is to what was trained, for a base that bitsandbytes
            quantized, or its 16-bit original; else None.
    """

    bundle: Bundle
    reused: tuple[str, ...]
    base_choice: BaseChoice | None = None


def build(package: Package, progress: Progress | None = None) -> Built:
    """Make the bundle of a package, or what is missing of it; gives the bundle.

    A rerun after a kill ends in the same bytes: files have a `.partial` name until they are
    complete, and what the manifest lists is verified by its digest before it is kept.

    Args:
        package: what to make, and where.
        progress: receives which files are kept, and the bytes as they are read and written.

    Raises:
        OutputExistsError: if the folder contains files of another model.
        DiskSpaceError: if there is no room for the files.
        NonFiniteError: if a weight is NaN or Inf.
        AdapterMismatchError: if something of an adapter was left out.
    """
    progress = progress or Silent()
    folder, digest = package.out, fingerprint(package)
    kept = _kept_files(package, digest, progress)
    missing = [file for file in package.files if file.file_name not in kept]
    needed_bytes = sum(file.typed.size_bytes + _METADATA_BYTES for file in missing)
    require_disk(folder, needed_bytes, "The bundle")
    base_choice = measure_base_choice(
        package.inputs.base,
        package.inputs.adapters,
        package.merge_onto,
        package.model,
        quant_types(package.text, [file.typed for file in package.ggufs]),
        progress,
    )
    if missing:
        with _cleaned_up_on_error(folder, [file.file_name for file in missing]):
            write_json(folder / _MARKER, {"fingerprint": digest})
            for written in _write(package, missing, progress):
                kept[written.path.name] = _describe(written)
    bundle = _finish(package, digest, kept)
    (folder / _MARKER).unlink(missing_ok=True)
    reused = tuple(file.file_name for file in package.files if file not in missing)
    return Built(bundle, reused, base_choice)


def _kept_files(package: Package, digest: str, progress: Progress) -> dict[str, GgufFile]:
    """The files of this package that an earlier run finished, verified, by name.

    Raises:
        OutputExistsError: if files of another model would be overwritten.
    """
    folder = package.out
    manifest = _read_manifest(folder)
    if manifest is None or manifest.fingerprint != digest:
        _require_free(package, digest, progress)
        return {}
    kept = {}
    existing = [file for file in manifest.files if (folder / file.name).is_file()]
    sizes_bytes = [(folder / file.name).stat().st_size for file in existing]
    with progress.task("Checking finished files", sum(sizes_bytes)) as task:
        for file in existing:
            if sha256_file(folder / file.name, task.advance) == file.sha256:
                kept[file.name] = file
    for file in manifest.files:
        if file.name not in kept:
            progress.warn(
                f"{folder / file.name} is missing or differs from its digest in {MANIFEST}, and is "
                "not kept"
            )
    if kept:
        progress.note(f"Already finished in {folder}, and verified: {', '.join(kept)}")
    return kept


def _require_free(package: Package, digest: str, progress: Progress) -> None:
    """Refuse a folder with another model's files, unless `--force` is given."""
    folder = package.out
    if _was_interrupted(folder, digest):
        return
    names = (*(file.file_name for file in package.files), MANIFEST, MODELFILE)
    if existing := [name for name in names if (folder / name).exists()]:
        refusal = OutputExistsError(
            f"{folder} already contains {', '.join(existing)} of another model or another "
            "configuration.",
            next_step="Choose another folder with --out, or overwrite them with --force.",
        )
        refuse_unless(package.force, refusal, progress)


def _read_manifest(folder: Path) -> Manifest | None:
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return read_bundle(folder).manifest
    except CorruptFileError:
        return None


def _was_interrupted(folder: Path, digest: str) -> bool:
    """Whether a run of this very package was interrupted here."""
    marker = folder / _MARKER
    if not marker.is_file():
        return False
    try:
        return read_json(marker).get("fingerprint") == digest
    except CorruptFileError:
        return False


@contextmanager
def _cleaned_up_on_error(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Make the folder; after an error, remove unfinished files, and the folder if it is empty."""
    with made_folder(folder):
        try:
            yield
        except BaseException:
            for name in names:
                partial_path(folder / name).unlink(missing_ok=True)
            (folder / _MARKER).unlink(missing_ok=True)
            raise


def _write(
    package: Package, missing: Sequence[PlannedGguf], progress: Progress
) -> list[WrittenGguf]:
    """Write the missing files; one pass over the weights serves all quants of the text model.

    The files get their names at the end, when every adapter is known to have been applied.
    """
    threads = package.options.threads or os.cpu_count() or 1
    written = []
    conversions = dict.fromkeys(file.conversion for file in missing)
    for conversion in conversions:
        targets = [
            (package.out / file.file_name, file.typed)
            for file in missing
            if file.conversion is conversion
        ]
        written += write_ggufs(conversion, targets, threads, progress)
    tensors_read = frozenset().union(*(conversion.reads for conversion in conversions))
    require_applied(package.model, progress, tensors_read)
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


def _finish(package: Package, digest: str, files: dict[str, GgufFile]) -> Bundle:
    """Write Modelfile, manifest and checksums; the manifest keeps the quants of earlier runs."""
    projector = files.pop(package.projector.file_name) if package.projector else None
    combination = package.merge_onto.options.combination
    manifest = Manifest(
        schema=SCHEMA,
        name=package.name,
        fingerprint=digest,
        base=base_identity(package.inputs),
        adapters=package.adapters,
        combination=combination.describe(len(package.adapters)) if combination else None,
        tools=tool_versions(package.inputs),
        ggufs=tuple(files.values()),
        projector=projector,
        prompt=_prompt_record(package),
    )
    bundle = Bundle(package.out, manifest, tuple(files[gguf.file_name] for gguf in package.ggufs))
    names = [bundle.ggufs[0].name, *([projector.name] if projector else [])]
    write_bundle(bundle.folder, manifest, render_modelfile(package.prompt.modelfile, *names))
    return bundle


def _prompt_record(package: Package) -> PromptRecord:
    prompt = package.prompt
    decision, modelfile = prompt.decision, prompt.modelfile
    return PromptRecord(
        renderer=decision.renderer,
        family=decision.family,
        reason=decision.reason,
        template_origin=prompt.chat_template.origin,
        ollama_template=modelfile.ollama_template,
        system=modelfile.system,
        stops=modelfile.stops,
        parameters=dict(modelfile.parameters),
        pins=dict(decision.pins),
        trained=record_template(prompt.chat_template),
    )
