"""The types of the library's names, which `__init__.py` imports when they are first used."""

from packager.bundle.bundle import Bundle as Bundle
from packager.bundle.bundle import read_bundle as read_bundle
from packager.bundle.bundle import verify_bundle as verify_bundle
from packager.errors import FtpackError as FtpackError
from packager.files import scratch_folder as scratch_folder
from packager.gguf.quants import parse_quant as parse_quant
from packager.merge.merge_options import Combination as Combination
from packager.merge.merge_options import MergeOptions as MergeOptions
from packager.package.package import Package as Package
from packager.package.plan import Plan as Plan
from packager.package.prepare import prepare as prepare
from packager.package.request import BuildOptions as BuildOptions
from packager.package.request import Request as Request
from packager.progress import Progress as Progress
from packager.progress import Silent as Silent
from packager.prompt.ollama_version import OllamaVersion as OllamaVersion
from packager.prompt.prompt_options import PromptOptions as PromptOptions
from packager.runtime.daemon import Daemon as Daemon
from packager.save.staged_folder import SavedFolder as SavedFolder
from packager.source.source_options import SourceOptions as SourceOptions
from packager.verbs.build import Built as Built
from packager.verbs.build import build as build
from packager.verbs.doctor import doctor as doctor
from packager.verbs.gguf import gguf as gguf
from packager.verbs.gguf import plan as plan
from packager.verbs.inspect import Inspection as Inspection
from packager.verbs.inspect import inspect as inspect
from packager.verbs.merge import MergedFolder as MergedFolder
from packager.verbs.merge import merge as merge
from packager.verbs.merge import save_adapter as save_adapter
from packager.verbs.modelfile import modelfile as modelfile
from packager.verbs.ollama import Packaged as Packaged
from packager.verbs.ollama import ollama as ollama
from packager.verbs.prompt import PromptReport as PromptReport
from packager.verbs.prompt import prompt as prompt
from packager.verbs.register import Registered as Registered
from packager.verbs.register import register as register
from packager.verbs.run import Chat as Chat
from packager.verbs.run import ChatOptions as ChatOptions
from packager.verbs.run import run as run
from packager.verify.dataset import read_conversations as read_conversations

__version__: str
