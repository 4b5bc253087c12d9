"""The inputs of a run: the source, further adapters, and the base that they need."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from packager.errors import NotAModelError, UsageError
from packager.model.adapter import Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.model.model_file import ModelFile
from packager.model.template_files import find_template
from packager.model.tokenizer import Vocabulary, load_vocabulary
from packager.progress import Progress
from packager.source.base.find import Base, find_base
from packager.source.open import Source, open_source
from packager.source.run.folders import TOKENIZER_FILES
from packager.source.source_options import SourceOptions


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, opened without reading a weight.

    Attributes:
        source: the fine-tune.
        more: further adapters.
        base: the base that the adapters need; None for a full model without adapters.
        files: the files beside the weights, by name; the fine-tune's own replace the base's.
        own_files: the fine-tune's own files: those of the adapter that defines the prompt.
    """

    source: Source
    more: tuple[Source, ...]
    base: Base | None
    files: Mapping[str, ModelFile]
    own_files: Mapping[str, ModelFile]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The source and the further adapters."""
        return (self.source, *self.more)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters, in the order of merging."""
        return tuple(source.adapter for source in self.sources if source.adapter is not None)

    @property
    def model(self) -> FolderCheckpoint:
        """The checkpoint that the weights come from: the base, or the full model."""
        model = self.base.checkpoint if self.base else self.source.model
        assert model is not None
        return model

    @property
    def base_files(self) -> Mapping[str, ModelFile]:
        """The base's files; empty if there is no base."""
        return self.base.checkpoint.files if self.base else {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of `files`, read once: a tokenizer's megabytes take half a second."""
        return load_vocabulary(self.files, self.model.config)

    @cached_property
    def base_vocabulary(self) -> Vocabulary:
        """The base's own vocabulary, read once."""
        return load_vocabulary(self.base_files, self.base.checkpoint.config if self.base else None)


def find_inputs(
    options: SourceOptions,
    progress: Progress,
    *,
    first_leads: bool = False,
    check_adapters: Callable[[int], None] = lambda count: None,
) -> Inputs:
    """Open the source and further adapters, and find the base that they need.

    Args:
        options: the user's options.
        progress: receives what was chosen, and why.
        first_leads: whether tokenizer and chat template come from the first adapter, as when
            several are combined into one; else they come from the last, which was trained last.
        check_adapters: called with the number of adapters, before a base is looked for.

    Raises:
        UsageError: if a base is named although the source is a full model.
        NotAModelError: if `--adapter` names something other than an adapter.
    """
    source = open_source(options.source, options.checkpoint, options.revision, progress)
    progress.note(f"Source: {source.reason}")
    more = tuple(_open_adapter(given, progress) for given in options.adapters)
    check_adapters(len(more) + (source.adapter is not None))
    if source.adapter is None and not more:
        return Inputs(source, (), None, source.files, source.files)
    base = _base(source, options, progress)
    _warn_of_other_bases((source, *more), progress)
    _warn_of_one_twice((source, *more), progress)
    own_files = _own_files([s for s in (source, *more) if s.adapter], first_leads, progress)
    own = {name: file for name, file in own_files.items() if TOKENIZER_FILES.fullmatch(name)}
    files = {**_compatible(base.checkpoint.files, own), **own}
    return Inputs(source, more, base, files, own_files)


def _compatible(
    base_files: Mapping[str, ModelFile], own: Mapping[str, ModelFile]
) -> Mapping[str, ModelFile]:
    """The base's files without those that would override the adapter's own in transformers.

    transformers 5 no longer writes some files of version 4, but still reads them last.
    """
    overriding = set()
    if "tokenizer_config.json" in own:
        overriding.add("special_tokens_map.json")
    if own.keys() & {"tokenizer.json", "tokenizer_config.json"}:
        overriding.add("added_tokens.json")
    if find_template(own) is not None:
        overriding |= {name for name in base_files if "chat_template" in name}
    return {name: file for name, file in base_files.items() if name not in overriding}


def _open_adapter(given: str, progress: Progress) -> Source:
    source = open_source(given, None, None, progress)
    if source.adapter is None:
        raise NotAModelError(
            f"--adapter {given} is not an adapter: it is a {source.reason}.",
            next_step="Name a full model as SOURCE or with --base, and adapters with --adapter.",
        )
    progress.note(f"Adapter: {source.reason}")
    return source


def _base(source: Source, options: SourceOptions, progress: Progress) -> Base:
    """The base of every adapter, which is the source if that is a full model."""
    if source.model is not None:
        if options.base is not None:
            raise UsageError(
                f"--base {options.base} cannot be used, since SOURCE {options.source} is a full "
                "model itself.",
                next_step="Omit --base, or name an adapter as SOURCE.",
            )
        return Base(source.model, source.model_id, source.revision, f"SOURCE, {source.reason}")
    assert source.adapter is not None
    revision = None if source.model_id else options.revision
    base = find_base(source.adapter, options.base, revision, progress, options.keep_base_quantized)
    progress.note(f"Base: {base.reason}")
    return base


def _warn_of_other_bases(sources: Sequence[Source], progress: Progress) -> None:
    """Warn if an adapter records another base than the first one; shapes are checked later."""
    first, *others = [source.adapter for source in sources if source.adapter is not None]
    own = first.config.base_model_name_or_path
    for adapter in others:
        other = adapter.config.base_model_name_or_path
        if own and other and own != other:
            progress.warn(f"{adapter.folder} was trained on {other}, {first.folder} on {own}")


def _warn_of_one_twice(sources: Sequence[Source], progress: Progress) -> None:
    """Warn if two adapters have the same weights, which is seldom intended."""
    folders = [source.folder for source in sources if source.adapter is not None]
    paths = [source.adapter.weights.path for source in sources if source.adapter is not None]
    for index, path in enumerate(paths):
        for other in range(index):
            if filecmp.cmp(path, paths[other], shallow=False):
                progress.warn(
                    f"{folders[index]} has the same weights as {folders[other]}: they change the "
                    "model twice"
                )
                break


def _own_files(
    sources: Sequence[Source], first_leads: bool, progress: Progress
) -> Mapping[str, ModelFile]:
    """The files of the one adapter that tokenizer and chat template are taken from.

    Adapters that are merged one after another were trained in that order, so that the last defines
    the prompt; of combined adapters the first does. Never mix two: their tokenizers may differ.
    """
    order = sources if first_leads else sources[::-1]
    with_tokenizer = [s for s in order if any(map(TOKENIZER_FILES.fullmatch, s.files))]
    chosen = (with_tokenizer or order)[0]
    if len(with_tokenizer) > 1:
        progress.note(f"Tokenizer and chat template: those of {chosen.folder}")
    return chosen.files
