#!/usr/bin/env python3
"""--model with a Hugging Face config.json: geometry, windows and weights of each family, and what is
said about those that the library cannot hold.

    test_models.py PKV-SIM
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

SIM = sys.argv.pop(1)

LLAMA = {"model_type": "llama", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16"}
QWEN2 = {"model_type": "qwen2", "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
         "hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064, "sliding_window": 131072,
         "max_window_layers": 28, "use_sliding_window": False, "torch_dtype": "float16"}
QWEN3 = {"model_type": "qwen3", "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
         "head_dim": 128, "hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151936,
         "tie_word_embeddings": True, "sliding_window": None, "use_sliding_window": False}
GEMMA2 = {"model_type": "gemma2", "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
          "head_dim": 256, "hidden_size": 2304, "sliding_window": 4096}
GEMMA3 = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34,
                                                  "hidden_size": 2560, "sliding_window": 1024,
                                                  "intermediate_size": 10240, "vocab_size": 262208},
          "vision_config": {"num_hidden_layers": 27, "hidden_size": 1152}}
MISTRAL = {"model_type": "mistral", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "hidden_size": 4096, "sliding_window": 4096}
PHI3 = {"model_type": "phi3", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "hidden_size": 3072, "sliding_window": 2047}
PHI = {"model_type": "phi", "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": None,
       "hidden_size": 2048}
GPT_OSS = {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
           "head_dim": 64, "hidden_size": 2880, "sliding_window": 128, "num_local_experts": 32,
           "layer_types": ["sliding_attention", "full_attention"] * 12}
DEEPSEEK = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128,
            "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "hidden_size": 7168}


class Models(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def run_sim(self, config, *args, changes=""):
        path = os.path.join(self.directory.name, "config.json")
        with open(path, "w") as f:
            f.write(config if isinstance(config, str) else json.dumps(config))
        return subprocess.run([SIM, "waste", "--synthetic", "lengths,requests=3", "--page-tokens", "16", "--model",
                               path + changes, *args], capture_output=True, text=True, timeout=60)

    def check(self, config, token_bytes, full, windowed=0, window=0, changes=""):
        done = self.run_sim(config, "--json", changes=changes)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["token_bytes"], token_bytes)
        text = self.run_sim(config, changes=changes).stdout.splitlines()[1]
        m = re.search(r"; (\d+) layers with full attention, (\d+) with a window of (\d+)", text)
        if full and windowed:
            self.assertEqual([int(x) for x in m.groups()], [full, windowed, window])
        else:
            self.assertIsNone(m)
            self.assertEqual(re.findall(r"window of (\d+) tokens", text), [str(window)] if window else [])

    def test_families(self):
        self.check(LLAMA, 32 * 8 * 128 * 4, 32)
        self.check(QWEN2, 28 * 4 * 128 * 4, 28)
        self.check(QWEN3, 36 * 8 * 128 * 4, 36)
        self.check(GEMMA2, 26 * 4 * 256 * 4, 13, 13, 4096)
        self.check(GEMMA3, 34 * 4 * 256 * 4, 5, 29, 1024)
        self.check(MISTRAL, 32 * 8 * 128 * 4, 0, 32, 4096)
        self.check(MISTRAL | {"sliding_window": None}, 32 * 8 * 128 * 4, 32)
        self.check(PHI3, 32 * 32 * 96 * 4, 0, 32, 2047)
        self.check(PHI, 24 * 32 * 64 * 4, 24)
        self.check(GPT_OSS, 24 * 8 * 64 * 4, 12, 12, 128)

    def test_fields(self):
        self.check(LLAMA | {"torch_dtype": "float32"}, 32 * 8 * 128 * 8, 32)
        self.check(LLAMA | {"head_dim": 64}, 32 * 8 * 64 * 4, 32)
        self.check(QWEN2 | {"use_sliding_window": True, "max_window_layers": 21, "sliding_window": 512},
                   28 * 4 * 128 * 4, 21, 7, 512)
        types = ["sliding_attention"] * 34
        types[3] = types[33] = "full_attention"
        inner = GEMMA3["text_config"]
        self.check(GEMMA3 | {"text_config": inner | {"layer_types": types}}, 34 * 4 * 256 * 4, 2, 32, 1024)
        self.check(GEMMA3 | {"text_config": inner | {"sliding_window_pattern": 2}}, 34 * 4 * 256 * 4, 17, 17, 1024)

    def test_changes_after_the_path(self):
        self.check(LLAMA, 32 * 8 * 128 * 8, 32, changes=",dtype=f32")
        self.check(GEMMA3, 34 * 4 * 256 * 4, 34, changes=",window=0")
        self.check(GEMMA3, 34 * 4 * 256 * 4, 17, 17, 512, changes=",window=512,full_every=2")

    def test_the_same_as_the_preset(self):
        for config, preset in ((LLAMA, "llama-3-8b"), (QWEN2, "qwen2.5-7b"), (GEMMA3, "gemma-3-4b")):
            path = os.path.join(self.directory.name, "config.json")
            with open(path, "w") as f:
                json.dump(config, f)
            runs = []
            for model in (preset, path):
                done = subprocess.run([SIM, "serve", "--synthetic", "chat,requests=40", "--compare", "none", "--json",
                                       "--model", model], capture_output=True, text=True, timeout=60)
                runs.append(json.loads(done.stdout)["runs"][0])
            for key in ("steps", "used_bytes_peak", "hit_tokens"):
                self.assertAlmostEqual(runs[0][key], runs[1][key], delta=0.02 * runs[0][key])
            self.assertAlmostEqual(runs[0]["simulated_seconds"], runs[1]["simulated_seconds"],
                                   delta=0.02 * runs[0]["simulated_seconds"])

    def test_what_the_library_cannot_hold(self):
        cases = ((DEEPSEEK, "kv_lora_rank"), (LLAMA | {"attention_chunk_size": 8192}, "attention_chunk_size"),
                 (LLAMA | {"is_encoder_decoder": True}, "cross-attention"),
                 (LLAMA | {"mamba_d_state": 16}, "recurrent state"),
                 (LLAMA | {"num_kv_shared_layers": 10}, "num_kv_shared_layers"),
                 (QWEN3 | {"layer_types": ["linear_attention", "full_attention"] * 18}, "'linear_attention' layers"))
        for config, message in cases:
            done = self.run_sim(config)
            self.assertEqual((done.returncode, done.stdout), (2, ""), message)
            self.assertIn("cannot hold", done.stderr)
            self.assertIn(message, done.stderr)

    def test_bad_files(self):
        def without(config, field):
            return {k: v for k, v in config.items() if k != field}
        cases = ((without(LLAMA, "num_hidden_layers"), '"num_hidden_layers" is missing'),
                 (without(LLAMA, "num_attention_heads"), '"num_attention_heads" is missing'),
                 (without(LLAMA, "hidden_size"), '"hidden_size" is missing'),
                 (LLAMA | {"num_hidden_layers": 0}, '"num_hidden_layers": 0 is not in 1..'),
                 (LLAMA | {"num_hidden_layers": 10**9}, "1000000000 is not in 1.."),
                 (LLAMA | {"num_key_value_heads": "8"}, '"num_key_value_heads" is not a whole number'),
                 (LLAMA | {"num_key_value_heads": 5}, "q_heads 32 is not a multiple of kv_heads 5"),
                 (LLAMA | {"head_dim": 100}, "head_dim 100 is not a multiple of 8"),
                 (GPT_OSS | {"layer_types": ["full_attention"]}, '"layer_types" is not a list of 24 names'),
                 ("[1]", "not a JSON object"), ('{"a": 1', "not a JSON object"), ("", "not a JSON object"))
        for config, message in cases:
            done = self.run_sim(config)
            self.assertEqual((done.returncode, done.stdout), (2, ""), message)
            self.assertIn(message, done.stderr)
        done = self.run_sim(LLAMA, changes=".json")
        self.assertEqual(done.returncode, 2)
        self.assertIn("No such file", done.stderr)


if __name__ == "__main__":
    unittest.main()
