/** A domain of the user's in front of an API: certificate, proof of ownership, address. Optional, in Route 53. */

interface Domain {
  name: string;
  zoneId: string | null;
}

/** `label` begins the names of the resources; `stage` is the API's stage that the domain shows. */
export function createDomain(
  label: string,
  { name, zoneId }: Domain,
  apiId: $util.Output<string>,
  stage: $util.Output<string>,
) {
  if (zoneId === null) throw new Error(`The domain ${name} needs VMFERRY_ZONE_ID, its Route 53 zone.`);
  const certificate = new aws.acm.Certificate(`${label}Certificate`, { domainName: name, validationMethod: "DNS" });
  const asked = certificate.domainValidationOptions.apply(([first]) => {
    if (first === undefined) throw new Error(`ACM asks no proof for ${name}.`);
    return first;
  });
  const proof = new aws.route53.Record(`${label}Proof`, {
    zoneId,
    name: asked.resourceRecordName,
    type: asked.resourceRecordType,
    records: [asked.resourceRecordValue],
    ttl: 60,
    // Another certificate of the same name asks for the same record.
    allowOverwrite: true,
  });
  const valid = new aws.acm.CertificateValidation(`${label}Valid`, {
    certificateArn: certificate.arn,
    validationRecordFqdns: [proof.fqdn],
  });
  const domain = new aws.apigatewayv2.DomainName(`${label}Domain`, {
    domainName: name,
    domainNameConfiguration: {
      certificateArn: valid.certificateArn,
      endpointType: "REGIONAL",
      securityPolicy: "TLS_1_2",
    },
  });
  new aws.apigatewayv2.ApiMapping(`${label}Mapping`, { apiId, domainName: domain.id, stage });
  const { targetDomainName, hostedZoneId } = domain.domainNameConfiguration;
  for (const type of ["A", "AAAA"] as const)
    new aws.route53.Record(`${label}Address${type}`, {
      zoneId,
      name,
      type,
      aliases: [{ name: targetDomainName, zoneId: hostedZoneId, evaluateTargetHealth: false }],
    });
  return { name: domain.domainName };
}
