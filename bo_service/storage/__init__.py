"""The store: tables, transactions and the only SQL of the service."""
