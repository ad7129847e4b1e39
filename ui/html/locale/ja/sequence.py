"""Japanese of the sequence page."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "Address of a sequence": "シーケンスのアドレス",
    "Every packed sequence has an address. Take one from a trace, a search, a document or a step.": (
        "パック済みシーケンスにはそれぞれアドレスがあります。トレース、検索、文書、ステップのいずれかから取ってください。"
    ),
    "Show as": "表示",
    "Reading the sequence …": "シーケンスを読み込んでいます…",
    "Get its tensors back": "テンソルを取り出す",
    "RUN is the run directory; the tensors are those of the recorded forward, bit for bit.": (
        "RUN はランのディレクトリです。記録された forward のテンソルがビット単位でそのまま得られます。"
    ),
    "Copy the snippet": "コードをコピー",
    "address": "アドレス",
    "where": "位置",
    "run {run}, attempt {attempt}, step {step}, data-parallel rank {rank}, micro-batch {m}, slot {q}": (
        "ラン {run}、アテンプト {attempt}、ステップ {step}、データ並列ランク {rank}、マイクロバッチ {m}、スロット {q}"
    ),
    "size": "大きさ",
    "status": "状態",
    "{n} tokens, segments: {k}": "{n} トークン、セグメント {k} 個",
    "evidence": "根拠",
    "matched": "照合",
    "not recorded": "記録なし",
    "forward: the tokens were seen in the forward call": "forward：トークンは forward の呼び出しで確認された",
    "loader: the tokens are what the data loader yielded": "loader：トークンはデータローダーが渡したもの",
    "declared: the trainer or an importer handed the tokens over": (
        "declared：トークンはトレーナーまたはインポートが申告したもの"
    ),
    "whole: the forward got all of the tokens": "whole：forward はすべてのトークンを受け取った",
    "slice: the forward got a part of the tokens": "slice：forward はトークンの一部を受け取った",
    "count: what a forward got was not seen": ("count：forward が受け取ったものは確認されていない"),
    "loss of the sequence": "シーケンスの損失",
    "position in the data order": "データ順での位置",
    "loss mask": "損失マスク",
    "all {n} labels count (from the recorded {name})": "{n} 個のラベルすべてが損失に入る（記録された {name} による）",
    "{n} of {all} labels count (from the recorded {name}); the others are struck out below": (
        "{all} 個のラベルのうち {n} 個が損失に入る（記録された {name} による）。ほかは下で取り消し線"
    ),
    "leaf hash": "リーフハッシュ",
    "its update was applied": "更新が適用された",
    "consumed, but its update was skipped": "消費されたが、更新は飛ばされた",
    "consumed without training": "学習せずに消費された",
    "run again: another step of this number counts": "やり直し：同じ番号の別のステップが有効",
    "◂ sequence before, on this rank": "◂ このランクの前のシーケンス",
    "next on this rank ▸": "このランクの次のシーケンス ▸",
    "nothing before it in this attempt": "このアテンプトではこれが最初",
    "nothing after it in this attempt": "このアテンプトではこれが最後",
    "tokens {a}–{b}": "トークン {a}～{b}",
    "from token {n} of the document": "文書のトークン {n} から",
    "of no known document": "文書は不明",
    "hidden": "非公開",
    "{n} tokens hidden": "{n} トークンは非公開",
    "token {n}, id {id}": "トークン {n}、ID {id}",
}
