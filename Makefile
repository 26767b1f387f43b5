# Thin on purpose: what each target does is in the script that it names.
.PHONY: run test check bench

run:
	@deploy/local/up.sh

test:
	@tests/run.sh

check:
	@tests/check.sh

bench:
	@tests/bench.sh
