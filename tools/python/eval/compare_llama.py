"""Compares the numpy forward pass with llama.cpp, an implementation written by others.

    python -m eval.compare_llama [--model smollm2] [--model gemma3] [--tokens 256] [--json]

Two comparisons per model. *quantised*: llama.cpp runs the file as it is and quantises activations
to 8 bits before each product, so logits differ by more than rounding; the correlation over all
logits must reach 0.999, and the greedy choice must agree wherever the margin between first and
second is clear (> 1.0). *float*: llama.cpp runs a temporary copy of the file with every tensor
dequantised to float32 and a float32 KV cache, which takes the 8-bit activations out of the
comparison; there every row must correlate to 0.99999 and the greedy choice agree wherever the
margin is above 0.05.
Needs ``llama-cpp-python``. Exit status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from pagedkv_runtime.model import Model
from pagedkv_runtime.reference import reference_logits
from pagedkv_runtime.tokenizer import Tokenizer
from pagedkv_runtime.weights import find_model, load_weights

TEXT = (
    "The river rises in the hills north of the town, runs for some forty miles through pasture and"
    " beech woods, and meets the sea below a low cliff of chalk. In 1841 a mill was built at the"
    " second bend; it ground corn for sixty years and then stood empty. Children used to say that"
    " the wheel still turned on windy nights. What turned, of course, was the weathervane on the"
    " roof, which had lost its cock but kept its tail.\n\nVisitors today find a footbridge, a small"
    " museum (open on Sundays from 10 to 4, admission 3.50) and, if the water is low, the stumps of"
    " the old weir. The museum's guide explains how the stones were dressed, why the miller kept"
    " cats, and how a quarrel about water rights between two brothers ended in court, where the"
    " judge, who knew nothing about mills, asked so many questions that the case took nine days."
)

#: Correlation over all logits, in every row; margin from which the greedy choice must agree.
BARS = {
    "quantised": (0.999, 0.0, 1.0),
    "float": (0.99999, 0.99999, 0.05),
}


def write_float_copy(source: Path, target: Path) -> None:
    """Writes a GGUF with the same metadata and every tensor as float32."""
    reader = gguf.GGUFReader(str(source))
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(target), arch)
    for name, item in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub = item.types[1] if item.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, item.contents(), item.types[0], sub_type=sub)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    for tensor in reader.tensors:
        writer.add_tensor(
            tensor.name,
            np.ascontiguousarray(
                gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
            ),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_logits(
    path: Path, ids: list[int], full: bool, add_bos: bool
) -> tuple[npt.NDArray[np.float64], list[int]]:
    """llama.cpp's logits ``[len(ids), vocab]`` of ids, and its own tokenisation of TEXT."""
    llama_cpp = importlib.import_module("llama_cpp")

    cache = {"type_k": 0, "type_v": 0} if full else {}  # 0 = float32
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=max(512, len(ids)),
        n_batch=len(ids),
        logits_all=True,
        verbose=False,
        seed=1,
        flash_attn=False,
        **cache,
    )
    try:
        own = llama.tokenize(TEXT.encode(), add_bos=add_bos, special=False)
        llama.reset()
        llama.eval(ids)
        return np.array(llama.scores[: len(ids)], dtype=np.float64), own
    finally:
        llama.close()


def compare(name: str, kind: str, n_tokens: int) -> dict[str, float | int | str]:
    """Feeds both implementations the same tokens and compares every row of logits."""
    path = find_model(name)
    weights = load_weights(path)
    tokenizer = Tokenizer(weights.metadata)
    ids = tokenizer.encode(TEXT)[:n_tokens]
    ours = reference_logits(Model(weights), ids).astype(np.float64)
    if kind == "float":
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "f32.gguf"
            write_float_copy(path, copy)
            theirs, own = llama_logits(copy, ids, True, tokenizer.add_bos)
    else:
        theirs, own = llama_logits(path, ids, False, tokenizer.add_bos)
    a = ours - ours.mean(axis=1, keepdims=True)
    b = theirs - theirs.mean(axis=1, keepdims=True)
    rows = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    pooled = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    bar_pooled, bar_row, margin = BARS[kind]
    top = np.sort(ours, axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > margin
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    good = (
        pooled >= bar_pooled
        and rows.min() >= bar_row
        and own[: len(ids)] == ids
        and bool(same[clear].all())
    )
    return {
        "model": name,
        "kind": kind,
        "tokens": len(ids),
        "same_tokenisation": int(own[: len(ids)] == ids),
        "correlation": pooled,
        "correlation_worst_row": float(rows.min()),
        "difference_max": float(np.abs(a - b).max()),
        "clear_rows": int(clear.sum()),
        "clear_rows_agreeing": int((clear & same).sum()),
        "rows_agreeing": int(same.sum()),
        "ok": int(good),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="smollm2, gemma3 or a path (repeatable)")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    results = [
        compare(name, kind, args.tokens)
        for name in args.model or ["smollm2", "gemma3"]
        for kind in BARS
    ]
    if args.json:
        print(json.dumps({"results": results}))
    else:
        for r in results:
            print(
                "  ".join(
                    f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
                    for key, value in r.items()
                )
            )
    return 0 if all(r["ok"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
