"""Japanese of the steps page."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "From step": "最初のステップ",
    "to step": "最後のステップ",
    "The range begins at step {first}, after its end, step {last}.": (
        "範囲の最初のステップ {first} が、最後のステップ {last} より後です。"
    ),
    "Reading the steps …": "ステップを読んでいます…",
    "There is no step from {first} to {last}. Choose a wider range.": (
        "{first} から {last} までのステップはありません。範囲を広げてください。"
    ),
    "Show all steps": "すべてのステップを表示",
    "Take this range as window A": "この範囲をウィンドウ A にする",
    "Take this range as window B": "この範囲をウィンドウ B にする",
    "Counting the sources …": "ソースを数えています…",
    "canonical lineage": "正規の系譜",
    "Steps of": "対象のステップ",
    "Comparing the step with those before it …": "それ以前のステップと比べています…",
    "close": "閉じる",
    "Compare two windows": "二つのウィンドウを比べる",
    "Window A, steps": "ウィンドウ A のステップ",
    "Window B, steps": "ウィンドウ B のステップ",
    "Expected steps such as 100-200, found {text}.": (
        "100-200 のようなステップの範囲が必要ですが、{text} と書かれています。"
    ),
    "Write the steps of two windows, or drag over a chart and take the range.": (
        "二つのウィンドウのステップを書くか、グラフ上をドラッグしてその範囲を使ってください。"
    ),
    "Comparing …": "比べています…",
    "A window of more than {n} steps is not compared; take less.": (
        "{n} ステップを超えるウィンドウは比べられません。狭めてください。"
    ),
    "spikes": "スパイク",
    "{n} of the steps are drawn: of each stretch the least, greatest and middle one of each metric, and every spike.": (
        "ステップのうち {n} 個を描いています。各区間で各指標の最小・最大・中央のものと、すべてのスパイクです。"
    ),
    "loss": "損失",
    "learning rate": "学習率",
    "gradient norm": "勾配ノルム",
    "step {step}: {what}": "ステップ {step}: {what}",
    "{metric} over steps, from {first} to {last}; between {low} and {high}; {n} spikes": (
        "ステップ {first} から {last} までの{metric}。{low} から {high} まで。スパイク {n} 個"
    ),
    "The trainer recorded no loss, learning rate or gradient norm.": (
        "トレーナーは損失も学習率も勾配ノルムも記録していません。"
    ),
    "Click a chart to see what is special about a step; drag over it to look at a range.": (
        "グラフをクリックすると、そのステップの特徴が見られます。ドラッグすると範囲を拡大します。"
    ),
    "Spikes, the strongest first": "スパイク(大きい順)",
    "No step of this range has a loss or gradient norm far above those before it. Click a chart to look at any step.": (
        "この範囲には、損失や勾配ノルムがそれ以前より大きく跳ねたステップはありません。グラフをクリックすれば"
        "、どのステップも調べられます。"
    ),
    "superseded": "破棄済み",
    "steps {first} to {last}: {source}, {n} segments, {share}": (
        "ステップ {first} から {last}: {source}、{n} セグメント、{share}"
    ),
    "other sources": "その他のソース",
    "Share of the sources in the segments, over steps {first} to {last}": (
        "ステップ {first} から {last} までの、セグメントに占める各ソースの割合"
    ),
    "Sources over steps": "ステップごとのソース",
    "source": "ソース",
    "segments": "セグメント",
    "share": "割合",
    "steps {first} to {last}": "ステップ {first} から {last}",
    "change": "変化",
    "median of the {metric}": "{metric}の中央値",
    "segments of {source}": "{source} のセグメント",
    "no known source": "ソース不明",
    "Step {step} against steps {first} to {last}": "ステップ {step} と、ステップ {first} から {last} までとの比較",
    "{n} sequences": "{n} シーケンス",
    "superseded: a later attempt took up from before it": "破棄済み: 後のアテンプトが、これより前から再開しました",
    "{n} sequences are hidden, in part at least, and left out.": (
        "{n} シーケンスは少なくとも一部が非公開のため、除いてあります。"
    ),
    "{metric} {value}: {deviations} robust deviations above the expected {expected}": (
        "{metric} {value}: 予想 {expected} を、ロバスト標準偏差の {deviations} 倍上回る"
    ),
    "Its sequences, the most unusual first": "このステップのシーケンス(珍しい順)",
    "No sequence of the step is unusual.": "このステップに珍しいシーケンスはありません。",
    "{feature}: {value}, in the middle of the window {median}": "{feature}: {value}(ウィンドウの中央値 {median})",
    "{n} bits of surprise": "意外さ {n} ビット",
    "mean of": "平均",
    "window": "ウィンドウ",
    "5–95% of its steps": "そのステップの 5–95%",
    "deviations": "偏差",
    "The step in the mean": "ステップの平均",
    "The sources differ from the window more than those of any of its steps.": (
        "ソースの構成は、ウィンドウのどのステップよりも大きくずれています。"
    ),
    "The sources differ from the window as those of {n} of its steps do.": (
        "ソースの構成のずれは、ウィンドウのステップの {n} にも見られる程度です。"
    ),
    "share of the step": "ステップでの割合",
    "of the window": "ウィンドウでの割合",
    "Sources": "ソース",
    "{tokens} tokens again, in {n} sequences of the step; {k} segments of the window": (
        "繰り返し {tokens} トークン。このステップの {n} シーケンス、ウィンドウの {k} セグメント"
    ),
    "Documents that the step or the window shows again": "このステップやウィンドウで繰り返される文書",
    "{n} times, expected {expected}, in {k} sequences": "{n} 回(予想 {expected} 回)、{k} シーケンス",
    "Search for it": "これを検索する",
    "N-grams that the step has too often": "このステップに多すぎる n-gram",
    "bits a token, by the window's tokens": "トークンあたりのビット数(ウィンドウのトークンによる)",
    "token pairs new to the window": "ウィンドウにないトークン対",
    "tokens that another row of the step has too": "同じステップの別の行にもあるトークン",
    "tokens in 8-grams that repeat": "繰り返す 8-gram のトークン",
    "compression": "圧縮率",
    "tokens seen at an earlier step": "以前のステップで見たトークン",
    "tokens of document parts seen again": "再び見た文書部分のトークン",
    "bits for its sources": "ソースのビット数",
    "Latin letters": "ラテン文字",
    "Han characters": "漢字",
    "kana": "かな",
    "hangul": "ハングル",
    "Cyrillic letters": "キリル文字",
    "letters of other scripts": "その他の文字",
    "digits": "数字",
    "punctuation and symbols": "句読点と記号",
}
