"""Japanese of the runs page."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "Run {name}": "ラン {name}",
    "Attempts and rollbacks": "アテンプトとロールバック",
    "Gaps": "欠落",
    "Other runs here": "ほかのラン",
    "{n} tokens, last step {s}": "{n} トークン、最後のステップ {s}",
    "Attempts over steps; pale: rolled back, superseded by a later attempt": (
        "アテンプトとステップ（薄い部分はロールバックされ、後のアテンプトに置き換えられた）"
    ),
    "gap in step {n}, rank {r}: {why}": "ステップ {n}、ランク {r} の欠落：{why}",
    "attempt {n}, steps {a}–{b}: {what}": "アテンプト {n}、ステップ {a}～{b}：{what}",
    "it counts": "有効",
    "rolled back": "ロールバック",
    "began (UTC)": "開始（UTC）",
    "resumed from": "再開元",
    "of these count": "うち有効",
    "ranks": "ランク数",
    "export format": "エクスポート形式",
    "sequences missing": "欠けたシーケンス",
    "reason": "理由",
    "step {s} of attempt {n}": "アテンプト {n} のステップ {s}",
    "none indexed": "索引なし",
    "No step of this run is indexed yet.": "このランのステップはまだ索引にありません。",
    "None: the trainer recorded no gap.": "ありません。トレーナーは欠落を記録していません。",
    "steps that count": "有効なステップ",
    "packed sequences": "パック済みシーケンス",
    "tokens a sequence": "シーケンスのトークン数",
    "tokens a sequence, at most": "シーケンスの最大トークン数",
    "tokenizer": "トークナイザー",
    "yes": "あり",
    "no": "なし",
    "steps missing": "欠けたステップ",
    "gaps": "欠落",
    "steps rolled back": "ロールバックされたステップ",
    "steps without an update": "更新のないステップ",
    "generation of the index": "索引の世代",
    "shards that answer": "応答するシャード",
    "{n} shards are damaged and are not asked: run `kiseki index --verify`.": (
        "{n} 個のシャードが壊れていて、問い合わせから外れています。`kiseki index --verify` を実行してください。"
    ),
    "Complete: every step up to the last indexed one is here, and nothing was left out.": (
        "完全です。最後に索引されたステップまですべてあり、欠けたものはありません。"
    ),
    "Something is missing, so a text that is not found may have been trained on all the same.": (
        "欠けているものがあります。見つからないテキストも、学習に使われたかもしれません。"
    ),
}
