/** The failure of a Perform: a fault that also says what the source's domain does now, because I2 hangs on it. */
import type { DomainState, Receipt } from "#protocol/command";
import { Fault, type FaultBody } from "#protocol/fault";

/** `receipt`: what the destination has stated by its ticket. `sourceState`: as looked up after the failure, never assumed; undefined when libvirt could not be asked. */
export class StepFault extends Fault {
  readonly sourceState: DomainState | undefined;
  readonly receipt: Receipt | undefined;

  constructor(
    body: FaultBody,
    sourceState: DomainState | undefined,
    options: { cause?: unknown; receipt?: Receipt | undefined } = {},
  ) {
    super(body, options);
    this.name = "StepFault";
    this.sourceState = sourceState;
    this.receipt = options.receipt;
  }
}
