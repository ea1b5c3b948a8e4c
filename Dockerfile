# The CPU demo in a container: docker build -t moe-cap . && docker run --rm -v "$PWD/results:/moe-cap/results" moe-cap
FROM python:3.12-slim-bookworm
# gcc: torch compiles small kernels when it runs. git: results say which commit they were made from.
RUN apt-get update && apt-get install -y --no-install-recommends make git gcc g++ libnuma1 && rm -rf /var/lib/apt/lists/*
WORKDIR /moe-cap
# The environments first: they change less often than the sources.
COPY pyproject.toml README.md LICENSE ./
COPY envs envs
COPY moecap moecap
COPY config config
RUN envs/setup.sh cpu quantize
COPY . .
ENV PATH="/moe-cap/.venv-cpu/bin:$PATH"
CMD ["make", "demo"]
