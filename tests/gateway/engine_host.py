"""Runs one real llama-server in this process until SIGTERM: `engine_host.py GGUF PORT ALIAS KEY [embedding]`."""

import signal
import sys

import xllamacpp


def main() -> None:
    path, port, alias, key, *rest = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.port = int(port)
    params.hostnames = ["127.0.0.1"]
    params.n_ctx = 4096
    params.cpuparams.n_threads = 1  # two would spin for each other on a busy machine with few cores
    params.cpuparams_batch.n_threads = 1
    params.n_parallel = 1
    params.api_keys = [key]
    params.model_alias = {alias}
    params.ui = False
    params.endpoint_slots = True
    if rest:
        params.embedding = True
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main()
