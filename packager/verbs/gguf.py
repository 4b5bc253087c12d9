"""`ftpack gguf`: the bundle, without a daemon; or, in a dry run, what it would be."""

from __future__ import annotations

from packager.files import scratch_folder
from packager.gguf.quants import QUANTS
from packager.gguf.types import type_quants, write_skeleton
from packager.package.plan import Plan, plan_of
from packager.package.prepare import prepare
from packager.package.request import Request
from packager.progress import Progress, Silent
from packager.runtime.model_name import validate_name
from packager.verbs.build import Built, build


def gguf(request: Request, progress: Progress | None = None) -> Built:
    """Build the bundle that a request describes.

    Raises:
        FtpackError: whatever is wrong with the input, before any long work; what `build` raises.
    """
    progress = progress or Silent()
    if request.name:
        validate_name(request.name)
    with scratch_folder() as scratch:
        return build(prepare(request, scratch, progress), progress)


def plan(request: Request, progress: Progress | None = None) -> Plan:
    """What `gguf` would make and what it would cost, for every quant of llama.cpp.

    Raises:
        FtpackError: whatever is wrong with the input.
    """
    progress = progress or Silent()
    if request.name:
        validate_name(request.name)
    with scratch_folder() as scratch:
        package = prepare(request, scratch, progress, will_build=False)
        skeleton = scratch / "every-quant.gguf"
        write_skeleton(skeleton, package.text)
        return plan_of(package, tuple(type_quants(package.text, QUANTS.values(), skeleton)))
