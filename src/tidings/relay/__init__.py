"""Between the log and a broker: the relay sends what was published, the intake brings in what others published."""
