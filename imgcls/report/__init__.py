"""Reports for people: one self-contained HTML file, without scripts and without the network.

    RUN ─ collect_run ─► RunReport ─┐
    DATA ─ imgcls.care ─────────────┴─ render ─► report.html

Every text of a run or a data set is untrusted, a class may be named `<script>`: the templates escape all of it, and the
page's own policy lets a browser load nothing.
"""
