"What several test files build on: small shapes, kinds of models, files of rows."

import json

import pytest

SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
    vocab_size=400,
    max_position_embeddings=512,
)
# as small as a model can be and still have two of everything
TINY_SHAPE = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=40,
    vocab_size=61,
)
# for comparisons with other programs: weights large enough that a mistake shows
COMPARED_SHAPE = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=80,
    initializer_range=0.2,
)
kinds = pytest.mark.parametrize(
    "qk_norm, tied",
    [(True, True), (True, False), (False, True), (False, False)],
    ids=["qwen3-tied", "qwen3", "llama-tied", "llama"],
)


def write_lines(path, rows):
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def number_prompts(n):
    "Rows that ask for a number, in prompts of several lengths."
    return [
        {
            "conversations": [
                {"role": "user", "content": f"Say {'very ' * (i % 5)}{i}."},
                {"role": "assistant", "content": "-"},
            ],
            "answer": str(i),
        }
        for i in range(n)
    ]
