// Lists the namespaces that a kubeconfig gives access to, by Kubernetes' client for Java: once, and for each line on stdin.
import io.kubernetes.client.openapi.ApiException;
import io.kubernetes.client.openapi.apis.CoreV1Api;
import io.kubernetes.client.util.Config;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.stream.Collectors;

public class Read {
    public static void main(String[] arguments) throws ApiException, IOException {
        list(arguments[0]);
        var lines = new BufferedReader(new InputStreamReader(System.in));
        while (lines.readLine() != null) {
            list(arguments[0]);
        }
    }

    private static void list(String kubeconfig) throws ApiException, IOException {
        // Read each time, since this client runs the exec plugin only when it reads the kubeconfig.
        var api = new CoreV1Api(Config.fromConfig(kubeconfig));
        var answer = api.listNamespace().executeWithHttpInfo();
        var names = answer.getData().getItems().stream().map(each -> each.getMetadata().getName());
        System.out.println(answer.getStatusCode() + " " + names.collect(Collectors.joining(" ")));
    }
}
