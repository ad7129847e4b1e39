"""What the pages show, as HTML from plain answers: pure functions, without Streamlit.

Corpus text, queries and names reach HTML through `escape.text_html` and `escape.attribute` alone.
"""
