/** A refusal as the command line says it: code, cause, next action on stderr, and the exit code. */
export class CliError extends Error {
  readonly code: string;
  readonly reason: string;
  readonly action: string;
  readonly exit: number;

  constructor(body: { code: string; cause: string; action: string; exit: number }) {
    super(`${body.code}: ${body.cause}`);
    this.name = "CliError";
    this.code = body.code;
    this.reason = body.cause;
    this.action = body.action;
    this.exit = body.exit;
  }

  /** What is printed on stderr. */
  lines(): string[] {
    return [`vmferry: ${this.code}: ${this.reason}`, `  next: ${this.action}`];
  }
}
