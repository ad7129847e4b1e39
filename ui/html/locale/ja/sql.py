"""Japanese of the SQL page."""

from collections.abc import Mapping

__all__ = ["WORDS"]

WORDS: Mapping[str, str] = {
    "Tokens of each source": "ソースごとのトークン数",
    "Loss and learning rate by step": "ステップごとの損失と学習率",
    "Sequences with the largest loss": "損失の大きいシーケンス",
    "Documents that were seen most often": "最も多く見られた文書",
    "Sources by hundredths of the run": "ランの百分の一ごとのソース",
    "Sequences that repeat themselves most": "繰り返しの多いシーケンス",
    "Attempts and where they resumed": "アテンプトと再開した位置",
    "Sequences and tokens by step status": "ステップの状態ごとのシーケンスとトークン",
    "Metrics that the trainer logged": "トレーナーが記録した指標",
    "One SELECT over the catalog": "カタログへの SELECT 文(一つ)",
    "Ask": "実行",
    "Choose a question above, or write one. The views are runs, attempts, steps, step_metrics, sequences, "
    "sequence_sources, segments, documents, shards and gaps; docs/catalog.md has their columns. Nothing "
    "can be changed.": (
        "上の質問を選ぶか、自分で書いてください。ビューは runs, attempts, steps, step_metrics, sequences, "
        "sequence_sources, segments, documents, shards, gaps で、列は docs/catalog.md にあります。データは変更"
        "できません。"
    ),
    "Asking the catalog …": "カタログに問い合わせています…",
    "Ready-made questions": "用意された質問",
    "This server does not answer SQL for the pages. Whoever runs it turns it on with `kiseki serve RUN "
    "--sql`; with keys, the pages' key needs the action sql and no restricted sources. On a command line "
    "`kiseki sql RUN` asks the same catalog.": (
        "このサーバーはページからの SQL に答えません。サーバーの管理者が `kiseki serve RUN --sql` で有効にしま"
        "す。キーを使う場合、ページのキーには sql の操作が許され、ソースの制限がない必要があります。コマンドラ"
        "インでは `kiseki sql RUN` で同じカタログに問い合わせられます。"
    ),
    "{n} rows": "{n} 行",
    "There are more: the server stops at its limit of rows or bytes. `kiseki sql RUN` has no such limit.": (
        "行はほかにもあります。サーバーは行数かバイト数の上限で打ち切ります。`kiseki sql RUN` に上限はありません。"
    ),
    "Download Parquet": "Parquet をダウンロード",
    "The query has no rows.": "結果は 0 行です。",
    "{n} more rows are in the file.": "ほかに {n} 行あり、ファイルに含まれます。",
    "{name} over {across}": "{across} ごとの {name}",
}
