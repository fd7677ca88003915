services:
  a:
    build: .
