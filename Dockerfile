# CPU image; --user makes the records those of whoever runs it:
#   docker build -t retbench .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/results:/work/results" retbench run latency
FROM python:3.12-slim AS build
WORKDIR /source
RUN pip install --no-cache-dir build==1.*
COPY pyproject.toml README.md LICENSE ./
COPY suite suite
COPY experiments experiments
COPY results/baselines/exact.json results/baselines/exact.json
RUN python -m build --wheel --outdir /wheels

FROM python:3.12-slim
# A C++ compiler for compiled decode steps, as in the profile cpu.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu /wheels/*.whl
# Any user may write here, and has its caches here too.
RUN useradd --home-dir /work retbench && install --directory --mode 1777 /work
USER retbench
WORKDIR /work
ENV HOME=/work
ENTRYPOINT ["retbench"]
CMD ["--help"]
