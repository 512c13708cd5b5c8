# The whole project in a container: `docker build -t salun . && docker run --name salun salun` builds the book, and
# `docker cp salun:/home/reader/salun/_build/html pages` copies it out: a folder mounted from outside would belong to
# another user. For a shell instead: `docker run --rm -it salun bash`.
FROM python:3.12-slim-bookworm

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium git make rsync \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home reader
USER reader
WORKDIR /home/reader/salun

# Packages first: they change less often than the code.
COPY --chown=reader Makefile pyproject.toml requirements.lock setup.py README.md LICENSE ./
COPY --chown=reader salun_core/__init__.py salun_core/__init__.py
RUN make install

COPY --chown=reader . .
CMD ["make", "book"]
