"""Japanese of the search page."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "best first": "関連度順",
    "first step first": "早いステップから",
    "last step first": "遅いステップから",
    "Order": "並び順",
    "Searching …": "検索しています…",
    "Words, phrases, fields, token n-grams": "単語、句、フィールド、トークン n-gram",
    "first page": "最初のページ",
    "next page": "次のページ",
    "{n} ms, generation {g} of the index": "{n} ミリ秒、索引の世代 {g}",
    "Snippets are shorter than they could be: the server limits them.": (
        "サーバーの制限により、抜粋を短くしています。"
    ),
    "Over steps": "ステップごと",
    "both words, anywhere in a segment": "両方の単語(セグメントのどこでも)",
    "one of them": "どちらか一方",
    "next to each other": "隣り合う並び",
    "without the word": "この単語を含まない",
    "how it begins": "この綴りで始まる",
    "one letter more, less or other": "一文字違いまで",
    "of this source": "このソースのもの",
    "of these steps": "これらのステップのもの",
    "these tokens next to each other": "このトークン列",
    "these token ids": "このトークン ID 列",
    "Japanese and Chinese as they are written": "日本語や中国語は書いてあるとおりに",
    "Write a query above to find the segments that the model was trained on.": (
        "上に検索式を書くと、モデルが学習したセグメントを探せます。"
    ),
    "steps {first} to {last}: {n} segments": "ステップ {first} から {last}: {n} セグメント",
    "Matching segments over steps {first} to {last}": "ステップ {first} から {last} までの一致するセグメント",
    "Drag over the bars, or click one, to search a part of the steps.": (
        "棒をドラッグするかクリックすると、ステップの一部だけを検索します。"
    ),
    "By source": "ソース別",
    "All sources": "すべてのソース",
    "There are more sources; name one above.": "ほかにもソースがあります。上の欄で指定してください。",
    "By data-parallel rank": "データ並列ランク別",
    "No segment matches in the selected steps. Try fewer or other words, or more steps and sources.": (
        "選んだステップに一致するセグメントはありません。単語を減らすか変えるか、ステップやソースを広げてください。"
    ),
    "Segments {first} to {last} of {n}": "セグメント {first}–{last} / {n} 件",
    "Segments {first} to {last} of at least {n}": "セグメント {first}–{last} / {n} 件以上",
    "This query cannot be read. The mark stands where it went wrong; quotation marks make any text plain.": (
        "検索式を読み取れません。印のところで誤りが見つかりました。引用符で囲めば、どんな文字もそのまま検索できます。"
    ),
    "a stretch without a known document": "文書のわからない部分",
    "step {step}, rank {rank}, tokens {start} to {end}": (
        "ステップ {step}、ランク {rank}、トークン {start} から {end}"
    ),
    "score {n}": "スコア {n}",
}
