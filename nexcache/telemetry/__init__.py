"""What happened, as values (`events`), under the field's names (`names`); `otel` and `log` say it."""
