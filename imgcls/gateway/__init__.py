"""The front door: Envoy before one or several TorchServes, its routes from a table, and honest readiness.

gateway.yaml ─► settings ─┐
                          ├─► listeners, routes, clusters ─► files that Envoy watches ─► Envoy ─► TorchServe
table.json  ─► table ─────┘
"""
