"""Writes golden files of single completions and prompts with pyarrow and datasets.

    pip install pyarrow==26.0.1 datasets==5.2.0
    HF_HUB_OFFLINE=1 python tests/golden/generate/completion_files.py

`tests/golden/preferences/`: each data set as JSONL and as Parquet with the same rows. Nothing is drawn; rows must agree
exactly (tolerance 0).
"""

import json
from pathlib import Path

import datasets

HERE = Path(__file__).resolve().parent.parent / "preferences"


def message(role, content):
    return {"role": role, "content": content}


def write(name, rows):
    (HERE / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(HERE / f"{name}.parquet")


def main():
    judged = [{"prompt": f"question {i}? 日本", "completion": f" answer {i} é", "label": i % 3 != 0} for i in range(10)]
    write("judged", judged)
    chats = [
        {"prompt": [message("user", f"q {i}")], "completion": [message("assistant", f"a {i}")], "label": i % 2 == 0, "source": "web"}
        for i in range(6)
    ]
    write("judged_chats", chats)
    whole = [{"id": f"m{i}", "messages": [message("system", "be brief")] * (i % 2) + [message("user", f"q {i}"), message("assistant", f"a {i}")]} for i in range(5)]
    write("messages", whole)
    older = [{"conversations": [{"from": "human", "value": f"q {i}"}, {"from": "gpt", "value": f"a {i}"}]} for i in range(5)]
    write("conversations_older", older)
    write("whole_texts", [{"text": f"Once upon a time, {i}.\n"} for i in range(4)])
    write("prompts", [{"prompt": f"tell me {i}", "answer": i} for i in range(4)])
    pairs = [{"prompt": f"p {i}", "chosen": f"a {i}", "rejected": f"b {i}", "logp_ref_chosen": -1.5 - i, "logp_ref_rejected": -0.1 * i} for i in range(5)]
    write("with_reference", pairs)


if __name__ == "__main__":
    main()
