# SPDX-License-Identifier: MIT
"""``python stock_llama.py FILE PROMPTS``: what a llama.cpp that is not ours makes of a GGUF file.

It is the one in the package xllamacpp. PROMPTS is JSON: lists of tokens. Prints JSON: for each the log
probabilities of the next token, by token. Code 3: it does not load the file.
"""

from __future__ import annotations

import json
import sys

import xllamacpp


def main() -> int:
    """The exit code."""
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = 2
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        return 3
    found = []
    for prompt in json.loads(sys.argv[2]):
        ask = {"prompt": prompt, "n_predict": 1, "n_probs": 1 << 20, "temperature": 0, "ignore_eos": True}
        said = server.handle_completions(ask)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found.append([p for _, p in sorted((entry["id"], entry["logprob"]) for entry in said)])
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
