"""Embeds texts with OpenAI's client; budgets travel in `extra_body`.

pip install openai
python3 examples/openai_embeddings.py [http://127.0.0.1:8000]
"""

import sys

import openai

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


def main() -> None:
    """Prints the cosine of two texts."""
    client = openai.OpenAI(base_url=f"{SERVER}/v1", api_key="none")
    answer = client.embeddings.create(
        model="text",
        input=["the mail servers answer", "the servers answer mail"],
        extra_body={"latency_budget_ms": 200},
    )
    one, two = (item.embedding for item in answer.data)
    print(f"cosine {sum(a * b for a, b in zip(one, two, strict=False)):.3f}")


if __name__ == "__main__":
    main()
