"""Japanese of what several pages share."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "Trace": "トレース",
    "Search": "検索",
    "Sequence": "シーケンス",
    "Steps": "ステップ",
    "Documents": "文書",
    "SQL": "SQL",
    "Runs": "ラン",
    "Run": "ラン",
    "Text": "テキスト",
    "Tokens": "トークン",
    "Copied": "コピーしました",
    "Copy link": "リンクをコピー",
    "and {n} more": "ほか {n} 件",
    "attempt": "アテンプト",
    "attempt {n}": "アテンプト {n}",
    "data-parallel rank": "データ並列ランク",
    "data-parallel ranks": "データ並列ランク",
    "documents": "文書",
    "from token {n}": "トークン {n} から",
    "once": "1 回",
    "rank {n}": "ランク {n}",
    "spans": "スパン",
    "step": "ステップ",
    "step {n}": "ステップ {n}",
    "steps": "ステップ",
    "steps {a}–{b}": "ステップ {a}～{b}",
    "tokens": "トークン",
    "{n} times": "{n} 回",
    "at least {n} times": "{n} 回以上",
    "{n} tokens": "{n} トークン",
    "Recomputed from {what}, not observed: nobody saw training consume these sequences.": (
        "{what} から再計算したランです。学習がこれらのシーケンスを実際に使うところは観測されていません。"
    ),
    "Imported from {what}, not observed by the hook.": "{what} から取り込んだランです。フックが観測した記録ではありません。",
    "The API does not answer. See whether `kiseki serve` is still running, then load the page again.": (
        "API が応答しません。`kiseki serve` が動いているか確かめてから、ページを読み込み直してください。"
    ),
    "This link was made when the index was at generation {asked}; it is at {now} now, and numbers may have changed. "
    "The views of a generation are kept for a few minutes only.": (
        "このリンクは索引の世代 {asked} のときに作られました。現在は世代 {now} で、数値が変わっているかもしれません。"
        "古い世代は数分しか保持されません。"
    ),
    "The pages' key is not valid. Whoever runs the server sets it in KISEKI_API_KEY.": (
        "ページのキーが無効です。サーバーの管理者が KISEKI_API_KEY に設定します。"
    ),
    "The pages' key does not allow this. Ask whoever runs the server for a key with this action.": (
        "ページのキーではこの操作ができません。この操作を許すキーをサーバーの管理者に求めてください。"
    ),
    "There is no such run here, or the pages' key may not see it. Choose a run at the top of the page.": (
        "そのランはここにないか、ページのキーでは見られません。ページの上でランを選んでください。"
    ),
    "No such sequence is in the index. Take an address from a trace, a search or a step.": (
        "そのシーケンスは索引にありません。トレース、検索、ステップのいずれかからアドレスを取ってください。"
    ),
    "This link goes on from a page of results that the server no longer knows. Begin with the first page.": (
        "このリンクの続きのページをサーバーはもう覚えていません。最初のページから始めてください。"
    ),
    "This link goes on in a state of the index that is gone. Begin with the first page.": (
        "このリンクが指す索引の世代はもうありません。最初のページから始めてください。"
    ),
    "The answer took too long. Ask for less: a shorter text, fewer hits, fewer steps.": (
        "時間切れです。テキストを短く、件数やステップを少なくしてください。"
    ),
    "The server has too much to do. Wait a moment and try again.": (
        "サーバーが混み合っています。少し待ってからもう一度試してください。"
    ),
    "Too many questions in a short time. Wait a moment and try again.": (
        "短い間に問い合わせが多すぎます。少し待ってからもう一度試してください。"
    ),
    "The pages' key has used up its tokens for today.": "ページのキーは今日のトークン数を使い切りました。",
    "This is not there yet: the index is still being made. Try again in a moment.": (
        "まだありません。索引を作成中です。少し待ってからもう一度試してください。"
    ),
    "A part of the index or of the export is damaged. `kiseki export verify` says which.": (
        "索引かエクスポートの一部が壊れています。どこかは `kiseki export verify` でわかります。"
    ),
    "This is too long for one question. Take a shorter text.": "一度の問い合わせには長すぎます。短くしてください。",
    "Nothing is here. The server may be older than these pages.": (
        "ここには何もありません。サーバーがこのページより古いのかもしれません。"
    ),
}
