# loadproof in a container; docker-compose.yml says how each target is run.
#
#   bench   measures servers that it starts beside itself (through the Docker socket) or that run already
#   demo    the same with llama.cpp inside: `loadproof demo` needs nothing else
#
# BASE needs Python 3.11 or newer with pip. Every step is in exec form, so that it needs no shell.
ARG BASE=python:3.12-slim

FROM ${BASE} AS bench
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
COPY pyproject.toml README.md LICENSE /src/
COPY orchestrator /src/orchestrator
COPY stacks /src/stacks
COPY workloads /src/workloads
COPY reports /src/reports
RUN ["python3", "-m", "pip", "install", "/src"]
WORKDIR /loadproof
# -P: what lies in the working folder (plans, runs) is never taken for a module.
ENTRYPOINT ["python3", "-P", "-m", "orchestrator.cli"]
CMD ["--help"]

FROM bench AS demo
# llama.cpp's wheel needs the OpenMP runtime, which slim images leave out; a base that has it needs no apt-get.
RUN ["python3", "-c", "import ctypes, subprocess\ntry:\n    ctypes.CDLL('libgomp.so.1')\nexcept OSError:\n    subprocess.check_call(['apt-get', 'update'])\n    subprocess.check_call(['apt-get', 'install', '-y', '--no-install-recommends', 'libgomp1'])\n"]
RUN ["python3", "-m", "pip", "install", "/src[demo]"]
ENV LOADPROOF_MODELS=/models
CMD ["demo"]
