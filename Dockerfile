# CPU image: docker build -t retbench . && docker run --rm -v "$PWD/results:/work/results" retbench run latency
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
RUN useradd --create-home retbench && mkdir /work && chown retbench /work
USER retbench
WORKDIR /work
ENTRYPOINT ["retbench"]
CMD ["--help"]
