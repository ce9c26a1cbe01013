/**
 * Where the SDK's clients send a request, in place of their own rules (infra/sdk-diet.ts): those weigh 40 KB, for access points, outposts, dual
 * stacks and accounts that are not used here. A test holds what is written here against them.
 */

/** What the clients ask with; `Bucket` only S3's. */
interface EndpointParams {
  Region?: string;
  Endpoint?: string;
  Bucket?: string;
  ForcePathStyle?: boolean;
  UseFIPS?: boolean;
  UseDualStack?: boolean;
}

interface Endpoint {
  url: URL;
  headers: Record<string, string[]>;
  properties: {
    authSchemes?: { name: "sigv4"; signingName: string; signingRegion: string; disableDoubleEncoding: true }[];
  };
}

/** The partitions of AWS that anybody may use; each has its own domain (AWS: partitions of regions). */
function domainOf(region: string): string {
  if (region.startsWith("cn-")) return "amazonaws.com.cn";
  if (/^(us-iso|eu-iso|eusc-)/.test(region)) throw new Error(`the endpoints of region ${region} are not known here`);
  return "amazonaws.com";
}

function regionOf({ Region, UseFIPS, UseDualStack }: EndpointParams): string {
  if (UseFIPS === true || UseDualStack === true)
    throw new Error("FIPS and dual-stack endpoints are not in this bundle");
  if (Region === undefined || !/^[a-z0-9-]+$/.test(Region)) throw new Error("the SDK was given no region");
  return Region;
}

/** Of a service without buckets: `dynamodb`. */
export function serviceEndpoint(service: string, params: EndpointParams): Endpoint {
  const region = regionOf(params);
  const url = new URL(params.Endpoint ?? `https://${service}.${region}.${domainOf(region)}`);
  return { url, headers: {}, properties: {} };
}

/** A bucket whose name is a label of a host name stands before the host; others, and those of an address, in the path. */
export function bucketEndpoint(params: EndpointParams): Endpoint {
  const region = regionOf(params);
  const { Bucket, Endpoint: endpoint, ForcePathStyle } = params;
  if (Bucket === undefined || Bucket.includes("/") || Bucket.includes(":"))
    throw new Error("a request of S3 names its bucket plainly");
  const url = new URL(endpoint ?? `https://s3.${region}.${domainOf(region)}`);
  const isAddress = /^\d+\.\d+\.\d+\.\d+$|^\[/.test(url.hostname);
  const isHost = ForcePathStyle !== true && !isAddress && /^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$/.test(Bucket);
  if (isHost) url.hostname = `${Bucket}.${url.hostname}`;
  else url.pathname = `${url.pathname.replace(/\/$/, "")}/${encodeURIComponent(Bucket)}`;
  return {
    url,
    headers: {},
    properties: {
      authSchemes: [{ name: "sigv4", signingName: "s3", signingRegion: region, disableDoubleEncoding: true }],
    },
  };
}
