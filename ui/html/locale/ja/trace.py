"""Japanese of the trace page."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "What a model wrote: text, or a chat as JSON": "モデルが書いたもの（テキスト、または JSON のチャット）",
    "or a file: .txt, chat .json, .jsonl of an OpenAI-style API": (
        "またはファイル：.txt、チャットの .json、OpenAI 形式 API の .jsonl"
    ),
    "Paste here": "ここに貼り付け",
    "Paste a text above, or upload a file, to see which parts of it the model was trained on.": (
        "上にテキストを貼り付けるかファイルを選ぶと、どの部分が学習に使われたかがわかります。"
    ),
    "Prompt": "プロンプト",
    "Output, of {n} in the file": "出力の番号（ファイル内に {n} 件）",
    "Trace this output": "この出力をトレース",
    "Shortest span, in tokens": "最短のスパン（トークン数）",
    "Only this source": "このソースだけ",
    "As the model checkpoint of this step had seen it": "このステップのモデルチェックポイントが見ていた範囲",
    "Looking for the text in what was trained on …": "学習データの中からテキストを探しています…",
    "No span of {n} or more tokens occurs in the selected steps. Try a smaller length or a later checkpoint.": (
        "選んだステップに {n} トークン以上のスパンはありません。最短の長さを小さくするか、後のチェックポイントにしてください。"
    ),
    "Download JSON": "JSON をダウンロード",
    "Download CSV": "CSV をダウンロード",
    "A trace shows where and when a text was trained on. It does not show why a model wrote it: a span may be a "
    "common phrase, or learnt elsewhere, and a count says nothing of a cause.": (
        "トレースが示すのは、テキストがいつどこで学習に使われたかです。モデルがなぜそれを書いたかは示しません。"
        "ありふれた言い回しかもしれず、ほかで学んだのかもしれません。回数は原因を語りません。"
    ),
    "{n} of {all} shards did not answer, so counts may be too small: {why}": (
        "{all} 個のシャードのうち {n} 個が応答しないので、回数は少なすぎるかもしれません：{why}"
    ),
    "A list was cut: there are more spans, places or documents than are shown.": (
        "一覧は途中までです。表示より多くのスパン、箇所、文書があります。"
    ),
    "rarest third": "最もまれな 3 分の 1",
    "middle third": "中間の 3 分の 1",
    "most common third": "最もよくある 3 分の 1",
    "more common, not listed": "さらによくある（一覧にない）",
    "a double line below: several spans overlap": "二重の下線：複数のスパンが重なる",
    "tokens that were trained on": "学習に使われたトークン",
    "longest span": "最長のスパン",
    "as of model checkpoint": "モデルチェックポイント",
    "took": "所要時間",
    "Rarest spans ({n})": "最もまれなスパン（{n}）",
    "Documents ({n})": "文書（{n}）",
    "Exposures over steps": "ステップごとの露出",
    "Exposures over steps; the line stands after model checkpoint {n}": (
        "ステップごとの露出（線はモデルチェックポイント {n} の直後）"
    ),
    "{tokens} tokens, seen {times}, {steps}": "{tokens} トークン、露出 {times}、{steps}",
    "{n} before checkpoint {step}, {all} in the whole run": "チェックポイント {step} までに {n}、ラン全体で {all}",
    "Span {n} of {all}": "スパン {n} / {all}",
    "A common span": "よくあるスパン",
    "and {n} more, numbered in the text": "ほか {n} 件（本文に番号があります）",
    "{n} more common spans are underlined with dots; they open as well": (
        "さらによくあるスパン {n} 件は点線の下線です。同じように開けます"
    ),
    "seen": "露出",
    "seen {times}": "露出 {times}",
    "length": "長さ",
    "document unknown": "文書は不明",
    "The cut between two packed sequences goes through this passage of {document}: it goes on in another span.": (
        "{document} のこの箇所はパック済みシーケンスの境目で切れていて、別のスパンに続きます。"
    ),
    "all spans": "すべてのスパン",
    "unmark": "印を消す",
    "mark in the text": "本文に印を付ける",
    "The documents of these spans are not known to the export.": "これらのスパンの文書はエクスポートに記録されていません。",
    "and {n} more in the JSON": "ほか {n} 件（JSON にあります）",
    "Where it was trained on": "学習に使われた箇所",
    "◂ before": "◂ 前へ",
    "next ▸": "次へ ▸",
    "{n} tokens in spans": "スパン内 {n} トークン",
}
