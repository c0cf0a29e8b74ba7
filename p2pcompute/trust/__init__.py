"""Pure: receipts, credit and votes on results."""
