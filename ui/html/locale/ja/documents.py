"""Japanese of the documents page."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "Source": "ソース",
    "Document id": "文書 ID",
    "Name a document by its source and id, or come here from a trace, a search, a sequence or a step.": (
        "ソースと ID で文書を指定するか、トレース、検索、シーケンス、ステップのページからここへ来てください。"
    ),
    "Looking for the document …": "文書を探しています…",
    "No exposure of such a document is in the selected steps.": "選んだステップに、この文書への曝露はありません。",
    "exposures": "曝露",
    "first step": "最初のステップ",
    "last step": "最後のステップ",
    "tokens seen, repeats too": "見たトークン(繰り返し込み)",
    "different tokens": "異なるトークン",
    "data-parallel ranks: {ranks}": "データ並列ランク: {ranks}",
    "Which of its tokens were seen": "見られたトークンの範囲",
    "step {step}, rank {rank}; tokens {first} to {last} of the document, {new} of them for the first time": (
        "ステップ {step}、ランク {rank}。文書のトークン {first} から {last}、うち {new} は初めて"
    ),
    "Every exposure, in the order of training": "すべての曝露(学習の順)",
    "steps {first} to {last}: {n} exposures": "ステップ {first} から {last}: 曝露 {n} 回",
    "Exposures over steps, {n} of them, from step {first} to {last}": (
        "ステップ {first} から {last} までの曝露 {n} 回"
    ),
    "The chart shows the first {n} exposures.": "グラフは最初の {n} 回の曝露を示します。",
    "tokens {first} to {last}": "トークン {first} から {last}",
    "{share} of the tokens up to the last one that was seen": "最後に見られたトークンまでの {share}",
    "{tokens} tokens {times} times": "{tokens} トークンを {times} 回",
    "What lies behind the last token that was seen is not known: the record holds what was consumed.": (
        "最後に見られたトークンより後ろはわかりません。記録されるのは学習に使われた部分だけです。"
    ),
}
