"""What the user gave, and the base that it needs."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
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
    """What was found, with no weight and no library looked at.

    Attributes:
        source: the fine-tune.
        more: further adapters.
        base: the base that the adapters need; None for a full model by itself.
        files: config and tokenizer files, the fine-tune's own before the base's.
        own_files: the fine-tune's own: those of the adapter that knows the prompt.
    """

    source: Source
    more: tuple[Source, ...]
    base: Base | None
    files: Mapping[str, ModelFile]
    own_files: Mapping[str, ModelFile]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that was named."""
        return (self.source, *self.more)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters, in the order of merging."""
        return tuple(source.adapter for source in self.sources if source.adapter is not None)

    @property
    def model(self) -> FolderCheckpoint:
        """The folder that the weights come from: the base, or the full model."""
        model = self.base.checkpoint if self.base else self.source.model
        assert model is not None
        return model

    @property
    def base_files(self) -> Mapping[str, ModelFile]:
        """The base's files; none where there is no base."""
        return self.base.checkpoint.files if self.base else {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """That of `files`, read once: it is half a second of a tokenizer's megabytes."""
        return load_vocabulary(self.files, self.model.config)

    @cached_property
    def base_vocabulary(self) -> Vocabulary:
        """The base's own, read once."""
        return load_vocabulary(self.base_files, self.base.checkpoint.config if self.base else None)


def find_inputs(options: SourceOptions, progress: Progress, *, first_leads: bool = False) -> Inputs:
    """Find the source, further adapters, and the base that they need.

    Args:
        options: what the user said about them.
        progress: told what was chosen, and why.
        first_leads: whether tokenizer and chat template are the first adapter's, as where several
            are combined into one; else the last one's, whose training came last.

    Raises:
        UsageError: if a base is named, and the source is a full model itself.
        NotAModelError: if what `--adapter` names is not an adapter.
    """
    source = open_source(options.source, options.checkpoint, options.revision, progress)
    progress.note(f"Source: {source.reason}")
    more = tuple(_open_adapter(given, progress) for given in options.adapters)
    if source.adapter is None and not more:
        return Inputs(source, (), None, source.files, source.files)
    base = _base(source, options, progress)
    _warn_of_other_bases((source, *more), progress)
    _warn_of_one_twice((source, *more), progress)
    own_files = _own_files([s for s in (source, *more) if s.adapter], first_leads, progress)
    own = {name: path for name, path in own_files.items() if TOKENIZER_FILES.fullmatch(name)}
    files = {**_beside(base.checkpoint.files, own), **own}
    return Inputs(source, more, base, files, own_files)


def _beside(
    base_files: Mapping[str, ModelFile], own: Mapping[str, ModelFile]
) -> Mapping[str, ModelFile]:
    """The base's files, less those by which transformers would overrule the adapter's own.

    Of transformers 4 there are files that version 5 no longer writes, and still reads last.
    """
    overruling = set()
    if "tokenizer_config.json" in own:
        overruling.add("special_tokens_map.json")
    if own.keys() & {"tokenizer.json", "tokenizer_config.json"}:
        overruling.add("added_tokens.json")
    if find_template(own) is not None:
        overruling |= {name for name in base_files if "chat_template" in name}
    return {name: path for name, path in base_files.items() if name not in overruling}


def _open_adapter(given: str, progress: Progress) -> Source:
    found = open_source(given, None, None, progress)
    if found.adapter is None:
        raise NotAModelError(
            f"--adapter {given} is a {found.reason}, and no adapter.",
            next_step="Name a full model as SOURCE or with --base, and adapters with --adapter.",
        )
    progress.note(f"Adapter: {found.reason}")
    return found


def _base(source: Source, options: SourceOptions, progress: Progress) -> Base:
    """The base of every adapter: the source, where that is a full model."""
    if source.model is not None:
        if options.base is not None:
            raise UsageError(
                f"--base {options.base} is given, and SOURCE {options.source} is a full model "
                "itself.",
                next_step="Leave --base away, or name an adapter as SOURCE.",
            )
        return Base(source.model, source.model_id, source.revision, f"SOURCE, {source.reason}")
    assert source.adapter is not None
    revision = None if source.model_id else options.revision
    base = find_base(source.adapter, options.base, revision, progress, options.keep_base_quantized)
    progress.note(f"Base: {base.reason}")
    return base


def _warn_of_other_bases(sources: Sequence[Source], progress: Progress) -> None:
    """Say where an adapter records another base than the first one does; shapes are checked."""
    first, *others = [source.adapter for source in sources if source.adapter is not None]
    own = first.config.base_model_name_or_path
    for adapter in others:
        other = adapter.config.base_model_name_or_path
        if own and other and own != other:
            progress.warn(f"{adapter.folder} was trained on {other}, {first.folder} on {own}")


def _warn_of_one_twice(sources: Sequence[Source], progress: Progress) -> None:
    """Say where two adapters have the same weights, which may be meant, and seldom is."""
    folders = [source.folder for source in sources if source.adapter is not None]
    paths = [source.adapter.weights.path for source in sources if source.adapter is not None]
    for index, path in enumerate(paths):
        for other in range(index):
            if filecmp.cmp(path, paths[other], shallow=False):
                progress.warn(f"{folders[index]} has the very weights of {folders[other]}: they "
                              "change the model twice")  # fmt: skip
                break


def _own_files(
    sources: Sequence[Source], first_leads: bool, progress: Progress
) -> Mapping[str, ModelFile]:
    """The files of the one adapter that tokenizer and chat template are taken from.

    Merged in turn, the last training is the one that the model has had; combined, the first named
    leads. Never of two: their tokenizers need not agree.
    """
    order = sources if first_leads else sources[::-1]
    with_tokenizer = [s for s in order if any(map(TOKENIZER_FILES.fullmatch, s.files))]
    chosen = (with_tokenizer or order)[0]
    if len(with_tokenizer) > 1:
        progress.note(f"Tokenizer and chat template: those of {chosen.folder}")
    return chosen.files
